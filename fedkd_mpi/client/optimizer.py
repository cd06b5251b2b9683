"""Optimisers of one flat vector, whose state belongs to the client in training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from fedkd_mpi.common.remembered import Kind, like
from fedkd_mpi.config.training import OptimizerConfig
from fedkd_mpi.models.flat import gradient_of

BETAS, EPSILON = [0.9, 0.999], 1e-8  # Kingma and Ba 2015


class Optimizer(ABC):
    """Updates a flat vector from its `.grad`, in one fused operation of torch.

    `state` is the client's optimiser state, tensors by name, {} before its first step; the caller sets it. torch's
    functional optimisers are used instead of its classes, because the classes import torch's compiler, which takes as
    long as importing torch itself, in every process.
    """

    def __init__(self, vector: Tensor, settings: OptimizerConfig, learning_rate: float):
        self.vector, self.learning_rate = vector, learning_rate  # of the configuration
        self.factor = 1.0  # on the learning rate: that of the step
        self.settings = settings
        self.state = {}

    @property
    def state(self) -> dict[str, Tensor]:
        """The state of the client in training."""
        return self._state

    @state.setter
    def state(self, state: dict[str, Tensor]) -> None:
        self._state = state

    @property
    def param_groups(self) -> list[dict[str, list[Tensor]]]:
        """The vector, where torch.amp.GradScaler looks for it."""
        return [{"params": [self.vector]}]

    def admits(self, name: str) -> bool:
        """Whether `state` may have a name that remembers() does not give."""
        return False

    def step(self) -> None:
        """Take one optimiser step."""
        self.step_all([self])

    @abstractmethod
    def remembers(self) -> dict[str, Kind]:
        """Return what `state` holds after a step."""

    @staticmethod
    @abstractmethod
    def step_all(optimizers: Sequence[Any]) -> None:
        """Take one step with each of several optimisers that share the same settings, in one operation."""


class SGD(Optimizer):
    """Stochastic gradient descent with momentum or Nesterov's momentum, as in torch.optim.SGD."""

    def remembers(self) -> dict[str, Kind]:
        """Return the momentum, where there is one."""
        return {"momentum_buffer": like(self.vector)} if self.settings.momentum else {}

    @staticmethod
    @torch.no_grad()
    def step_all(optimizers: Sequence[SGD]) -> None:
        settings, rate = optimizers[0].settings, optimizers[0].learning_rate * optimizers[0].factor
        moving = [one for one in optimizers if "momentum_buffer" in one.state]
        for group in (moving, [one for one in optimizers if "momentum_buffer" not in one.state]):
            if not group:
                continue
            buffers = [one.state.get("momentum_buffer") for one in group]
            sgd(
                [one.vector for one in group],
                [gradient_of(one.vector) for one in group],
                buffers,
                fused=True,
                weight_decay=settings.weight_decay,
                momentum=settings.momentum,
                lr=rate,
                dampening=0.0,
                nesterov=settings.nesterov,
                maximize=False,
            )
            if settings.momentum:
                for one, buffer in zip(group, buffers, strict=True):
                    if buffer is not None:  # torch has put one there
                        one.state["momentum_buffer"] = buffer


class Adam(Optimizer):
    """Adam (Kingma and Ba 2015) and AdamW (Loshchilov and Hutter 2019), as in torch.optim.Adam and AdamW."""

    def remembers(self) -> dict[str, Kind]:
        """Return the number of steps and both moments."""
        return {"step": Kind(()), "exp_avg": like(self.vector), "exp_avg_sq": like(self.vector)}

    @staticmethod
    @torch.no_grad()
    def step_all(optimizers: Sequence[Adam]) -> None:
        settings, rate = optimizers[0].settings, optimizers[0].learning_rate * optimizers[0].factor
        beta1, beta2 = settings.betas or BETAS
        for one in optimizers:
            if not one.state:
                zeros = torch.zeros((), device=one.vector.device), *(torch.zeros_like(one.vector) for _ in range(2))
                one.state.update(zip(("step", "exp_avg", "exp_avg_sq"), zeros, strict=True))
        adam(
            [one.vector for one in optimizers],
            [gradient_of(one.vector) for one in optimizers],
            [one.state["exp_avg"] for one in optimizers],
            [one.state["exp_avg_sq"] for one in optimizers],
            [],
            [one.state["step"] for one in optimizers],
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=rate,
            weight_decay=settings.weight_decay,
            eps=settings.eps or EPSILON,
            maximize=False,
            decoupled_weight_decay=settings.name == "adamw",
        )


def clip_(gradient: Tensor, longest: float) -> None:
    """Scale a flat gradient, or each row of a matrix, down in place to the norm `longest` (Pascanu et al. 2013).

    The result equals that of torch.nn.utils.clip_grad_norm_ to the bit. That function is not used because its handling
    of lists of tensors takes a tenth of the time of a small step.
    """
    norms = torch.linalg.vector_norm(gradient, dim=-1, keepdim=True)
    gradient.mul_((longest / (norms + 1e-6)).clamp_(max=1.0))


def make_optimizer(vector: Tensor, settings: OptimizerConfig, learning_rate: float) -> Optimizer:
    """Return the optimiser that the configuration names, for a flat vector."""
    kind: type[SGD] | type[Adam] = SGD if settings.name == "sgd" else Adam
    return kind(vector, settings, learning_rate)
