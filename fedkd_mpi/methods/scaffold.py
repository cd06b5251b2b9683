"""SCAFFOLD: FedAvg with control variates against client drift (Karimireddy et al., ICML 2020, Algorithm 1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fedkd_mpi.common.remembered import Kind, like
from fedkd_mpi.errors import UserError
from fedkd_mpi.methods.fedavg import FedAvg
from fedkd_mpi.models.flat import FlatModel
from fedkd_mpi.models.module_tensors import own_tensors

CONTROL = "scaffold_control"  # a submodule of the network with buffers named as the parameters


class _Control(nn.Module):
    """Contains the control variate; as an identity it has no effect if a network calls all of its children in turn."""

    def forward(self, x: Any) -> Any:
        return x


class Scaffold(FedAvg):
    """The server's control variate c is sent in both directions as raw buffers of the network and counted as such.

    The gradient of a step is g - c_i + c. A client's new c_i is the mean of its gradients g over the steps. With plain
    SGD this equals the paper's option II, c_i - c + (x - y_i) / (steps * learning rate).
    """

    def student(self) -> nn.Module:
        model = super().student()
        if hasattr(model, CONTROL):
            raise UserError(f"the network has an attribute {CONTROL}, which method=scaffold needs: rename it")
        control = _Control()
        for slot in own_tensors(model)[0]:
            *path, last = slot.name.split(".")
            owner: nn.Module = control
            for name in path:  # the same tree as in the model, so that names are unique
                if name not in owner._modules:
                    owner.add_module(name, nn.Module())
                owner = owner.get_submodule(name)
            owner.register_buffer(last, torch.zeros_like(slot.tensor, memory_format=torch.contiguous_format))
        model.add_module(CONTROL, control)
        return model

    def remembers(self, student: FlatModel) -> dict[str, Kind]:
        return {"control": like(student.trainable)}

    def correct(self, student: FlatModel, start: Tensor, state: dict[str, Tensor]) -> None:
        gradient = student.trainable_gradient
        for name in ("control", "sum"):
            state.setdefault(name, gradient.new_zeros(gradient.shape))
        state["steps"] = state.get("steps", gradient.new_zeros(())) + 1
        state["sum"] += gradient
        gradient += _control(student, start) - state["control"]

    def finish(self, student: FlatModel, start: Tensor, state: dict[str, Tensor]) -> None:
        control = state.pop("sum") / state.pop("steps")
        # The server averages the values of c that clients send: c changes by the cohort's share of the mean difference.
        share = self.config.clients_per_round / self.config.num_clients
        _control(student, student.state).add_(control - state["control"], alpha=share)
        state["control"] = control


def _control(student: FlatModel, flat: Tensor) -> Tensor:
    return flat[student.part(f"{CONTROL}.")]
