"""SCAFFOLD: FedAvg whose clients correct their drift (Karimireddy et al., ICML 2020, Algorithm 1)."""

from __future__ import annotations

from torch import Tensor, nn

from fedkd_mpi.methods.fedavg import FedAvg
from fedkd_mpi.network import Network


class Scaffold(FedAvg):
    """The server's control variate c travels both ways as buffers of the network, and is counted as such.

    The gradient of a step is g - c_i + c. A client's new c_i is the mean of its gradients g over the steps: with plain
    SGD that is the paper's option II, c_i - c + (x - y_i) / (steps * learning rate); with momentum it still is a mean.
    """

    def student(self) -> nn.Module:
        model = super().student()
        for name, parameter in list(model.named_parameters()):
            if parameter.requires_grad:
                # Buffers of the root module come first in a Network: c lies behind the parameters in the same layout.
                model.register_buffer(f"control_{name.replace('.', '_')}", parameter.detach().clone().zero_())
        return model

    def correct(self, student: Network, start: Tensor, state: dict[str, Tensor]) -> None:
        gradient = student.trainable.grad
        for name in ("control", "sum"):
            state.setdefault(name, gradient.new_zeros(gradient.shape))
        state["steps"] = state.get("steps", gradient.new_zeros(())) + 1
        state["sum"] += gradient
        gradient += _control(student, start) - state["control"]

    def finish(self, student: Network, start: Tensor, state: dict[str, Tensor]) -> None:
        control = state.pop("sum") / state.pop("steps")
        # c grows by the cohort's share of the mean difference, whatever the server's learning rate for the model.
        share = self.config.cohort / self.config.num_clients / self.config.server.learning_rate
        _control(student, student.state).add_(control - state["control"], alpha=share)
        state["control"] = control


def _control(student: Network, flat: Tensor) -> Tensor:
    size = student.trainable.numel()
    return flat[size : 2 * size]
