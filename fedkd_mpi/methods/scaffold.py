"""SCAFFOLD: FedAvg whose clients correct their drift (Karimireddy et al., ICML 2020, Algorithm 1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fedkd_mpi.errors import UserError
from fedkd_mpi.methods.fedavg import FedAvg
from fedkd_mpi.models.flat import FlatModel
from fedkd_mpi.models.module_tensors import own_tensors

CONTROL = "scaffold_control"  # a submodule of the network, of its parameters' names


class _Control(nn.Module):
    """Room for the control variate; where a network calls all of its children in turn, it changes nothing."""

    def forward(self, x: Any) -> Any:
        return x


class Scaffold(FedAvg):
    """The server's control variate c travels both ways as buffers of the network, raw, and is counted as such.

    The gradient of a step is g - c_i + c. A client's new c_i is the mean of its gradients g over the steps: with plain
    SGD that is the paper's option II, c_i - c + (x - y_i) / (steps * learning rate); with momentum it still is a mean.
    """

    def student(self) -> nn.Module:
        model = super().student()
        if hasattr(model, CONTROL):
            raise UserError(f"the network has a {CONTROL} of its own, which method=scaffold needs: rename it")
        control = _Control()
        for slot in own_tensors(model)[0]:
            *path, last = slot.name.split(".")
            room = control
            for name in path:  # the model's own tree again: no two names can meet
                if name not in room._modules:
                    room.add_module(name, nn.Module())
                room = room._modules[name]
            room.register_buffer(last, torch.zeros_like(slot.tensor, memory_format=torch.contiguous_format))
        model.add_module(CONTROL, control)
        return model

    def correct(self, student: FlatModel, start: Tensor, state: dict[str, Tensor]) -> None:
        gradient = student.trainable.grad
        for name in ("control", "sum"):
            state.setdefault(name, gradient.new_zeros(gradient.shape))
        state["steps"] = state.get("steps", gradient.new_zeros(())) + 1
        state["sum"] += gradient
        gradient += _control(student, start) - state["control"]

    def finish(self, student: FlatModel, start: Tensor, state: dict[str, Tensor]) -> None:
        control = state.pop("sum") / state.pop("steps")
        # The server takes the mean of what clients send for c, so c grows by the cohort's share of the mean difference.
        share = self.config.clients_per_round / self.config.num_clients
        _control(student, student.state).add_(control - state["control"], alpha=share)
        state["control"] = control


def _control(student: FlatModel, flat: Tensor) -> Tensor:
    return flat[student.part(f"{CONTROL}.")]
