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
from fedkd_mpi.methods.hidden_units import Layers, kept_parameters, sources
from fedkd_mpi.models.flat import FlatModel
from fedkd_mpi.tasks import Examples, Task

# Layers that normalise over units, including omitted units.
MIXING = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm, nn.RMSNorm)


class FedDropout(FedAvg):
    """All clients of a round omit the same units of every hidden layer and keep the share averaging.keep of them.

    Outputs of kept units are scaled by 1 / share, as in dropout. Parameters of omitted units are unchanged to the bit,
    so that codec `submatrix` need not send them. The complete network is scored. Raises UserError for layers, and what
    is between them, that do not compute as a network without the omitted units.
    """

    def __init__(self, config: Config, task: Task):
        super().__init__(config, task)
        self._masks: list[Tensor] = []
        self._layers: Layers = {}
        self._hidden: list[str] = []
        self._read: dict[str, Tensor] | None = None
        self._kept: Tensor | None = None  # which numbers of the flat student belong to this round's part

    def student(self) -> nn.Module:
        model = super().student()
        for name, layer in model.named_modules():
            if isinstance(layer, MIXING) or (not isinstance(layer, (nn.Linear, nn.Conv2d)) and layer._parameters):
                raise UserError(
                    f"method=feddropout omits units of Linear and Conv2d layers, but {name or 'the network'} is a"
                    f" {type(layer).__name__}, which would mix omitted units with others or keep them: choose a network"
                    " without it, or another method"
                )
        layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)}
        self._layers, head = layers, getattr(model, "head", None)  # the head may be registered first
        last = next((name for name, layer in layers.items() if layer is head), list(layers)[-1])
        self._hidden = [name for name in layers if name != last]
        self._shapes = [(layer.weight.shape[0], *(1,) * (layer.weight.dim() - 2)) for layer in self._hidden_layers()]
        for index, layer in enumerate(self._hidden_layers()):
            layer.register_forward_hook(partial(self._leave_out, index))
        return model

    def examine(self, student: nn.Module, batch: Examples) -> None:
        other = {name: part * 0.5 + 1 if part.is_floating_point() else part for name, part in batch.items()}
        training = student.training
        student.eval()
        with torch.no_grad():
            self._read = sources(
                self._layers, self._hidden, lambda second: self.task.predict(student, other if second else batch)
            )
        student.train(training)

    def _hidden_layers(self) -> list[nn.Linear | nn.Conv2d]:
        return [self._layers[name] for name in self._hidden]

    def begin(self, round_index: int, device: str) -> None:
        random = generator(self.config.seed, "federated dropout", round_index)
        self._masks, self._kept = [], None
        for shape in self._shapes:
            kept = max(1, round(self.config.averaging.keep * shape[0]))
            mask = torch.zeros(shape)
            mask[random.permutation(shape[0])[:kept]] = shape[0] / kept
            self._masks.append(mask.to(device))

    def loss(self, private: nn.ModuleDict, student: nn.Module | None, batch: Examples) -> tuple[Tensor, Tensor, Tensor]:
        if self._read is None and student is not None:
            self.examine(student, batch)
        return super().loss(private, student, batch)

    def finish(self, student: FlatModel, start: Tensor, state: dict[str, Tensor]) -> None:
        if self._kept is None:
            self._kept = self._part(student)
        part = student.state[: self._kept.numel()]
        part.copy_(torch.where(self._kept, part, start[: part.numel()]))  # undo steps by momentum and weight decay

    def _part(self, student: FlatModel) -> Tensor:
        assert self._read is not None
        kept = [mask.cpu().reshape(-1) > 0 for mask in self._masks]
        masks = kept_parameters(self._layers, self._hidden, self._read, kept)
        flat = torch.zeros(student.state.numel(), dtype=torch.bool)
        for layer, view in zip(student.layers, student.views(flat), strict=True):
            for name in student.names_of(layer):
                view |= masks.get(name, torch.ones((), dtype=torch.bool))
        return flat[: student.trainable.numel()].to(student.state.device)

    def _leave_out(self, index: int, layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output * self._masks[index] if layer.training else output
