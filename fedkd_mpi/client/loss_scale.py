"""Loss scaling for float16, whose gradients would otherwise vanish (Micikevicius et al., ICLR 2018)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

import torch
from torch import Tensor

from fedkd_mpi.client.optimizer import Optimizer
from fedkd_mpi.common.remembered import Kind

REMEMBERED = {"scale": Kind(()), "growth_tracker": Kind((), "int64")}


class LossScale:
    """torch.amp.GradScaler with its default settings; its `state` belongs to the client in training, {} at first.

    A step is left out for a network whose gradient is not finite, and the scale is then halved.
    """

    def __init__(self, device: str, state: Mapping[str, Tensor]):
        self._scaler = torch.amp.GradScaler(device.partition(":")[0])
        if state:
            kept = {"scale": float(state["scale"]), "_growth_tracker": int(state["growth_tracker"])}
            self._scaler.load_state_dict(self._scaler.state_dict() | kept)

    @property
    def state(self) -> dict[str, Tensor]:
        """The scale and the number of steps since it changed."""
        state = self._scaler.state_dict()
        return {"scale": torch.tensor(state["scale"]), "growth_tracker": torch.tensor(state["_growth_tracker"])}

    def scaled(self, loss: Tensor) -> Tensor:
        """Return the loss to differentiate."""
        return self._scaler.scale(loss)

    def unscale(self, optimizers: Iterable[Optimizer]) -> None:
        """Divide the gradients by the scale, once all of a step are there."""
        for optimizer in optimizers:
            self._scaler.unscale_(cast("torch.optim.Optimizer", optimizer))

    def step(self, optimizers: Iterable[Optimizer]) -> None:
        """Take a step with each of the optimisers whose gradient is finite, and adapt the scale."""
        for optimizer in optimizers:
            self._scaler.step(cast("torch.optim.Optimizer", optimizer))
        self._scaler.update()
