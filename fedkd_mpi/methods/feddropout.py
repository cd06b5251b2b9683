"""Federated dropout: every round trains and exchanges a random part of the network (Caldas et al. 2018)."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fedkd_mpi.common.random_streams import generator
from fedkd_mpi.config.schema import Config
from fedkd_mpi.errors import UserError
from fedkd_mpi.methods.fedavg import FedAvg
from fedkd_mpi.models.flat import FlatModel
from fedkd_mpi.tasks import Task

# Layers that normalise over units, including omitted units.
MIXING = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm, nn.RMSNorm)


class FedDropout(FedAvg):
    """All clients of a round omit the same units of every hidden layer and keep the share averaging.keep of them.

    Outputs of kept units are scaled by 1 / share, as in dropout. Parameters without a gradient are unchanged to the
    bit, so that codec `submatrix` need not send them. The complete network is scored. Raises UserError for layers that
    are not supported.
    """

    def __init__(self, config: Config, task: Task):
        super().__init__(config, task)
        self._masks: list[Tensor] = []

    def student(self) -> nn.Module:
        model = super().student()
        for name, layer in model.named_modules():
            if isinstance(layer, MIXING) or (not isinstance(layer, (nn.Linear, nn.Conv2d)) and layer._parameters):
                raise UserError(
                    f"method=feddropout omits units of Linear and Conv2d layers, but {name or 'the network'} is a"
                    f" {type(layer).__name__}, which would mix omitted units with others or keep them: choose a network"
                    " without it (norm=none), or another method"
                )
        *hidden, last = (layer for layer in model.modules() if isinstance(layer, (nn.Linear, nn.Conv2d)))
        if (head := getattr(model, "head", last)) in hidden:  # the head may be registered first
            hidden = [layer for layer in [*hidden, last] if layer is not head]
        self._shapes = [(layer.weight.shape[0], *(1,) * (layer.weight.dim() - 2)) for layer in hidden]
        for index, layer in enumerate(hidden):
            layer.register_forward_hook(partial(self._leave_out, index))
        return model

    def begin(self, round_index: int, device: str) -> None:
        random = generator(self.config.seed, "federated dropout", round_index)
        self._masks = []
        for shape in self._shapes:
            kept = max(1, round(self.config.averaging.keep * shape[0]))
            mask = torch.zeros(shape)
            mask[random.permutation(shape[0])[:kept]] = shape[0] / kept
            self._masks.append(mask.to(device))

    def correct(self, student: FlatModel, start: Tensor, state: dict[str, Tensor]) -> None:
        moved = student.trainable_gradient.ne(0)
        state["moved"] = state["moved"] | moved if "moved" in state else moved

    def finish(self, student: FlatModel, start: Tensor, state: dict[str, Tensor]) -> None:
        moved = state.pop("moved")
        part = student.state[: moved.numel()]
        part.copy_(torch.where(moved, part, start[: moved.numel()]))  # undo steps by momentum of earlier rounds

    def _leave_out(self, index: int, layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output * self._masks[index] if layer.training else output
