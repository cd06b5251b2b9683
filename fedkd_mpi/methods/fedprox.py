"""FedProx: FedAvg with a proximal term towards the global model (Li et al., MLSys 2020, equation 2)."""

from __future__ import annotations

from torch import Tensor

from fedkd_mpi.methods.fedavg import FedAvg
from fedkd_mpi.models.flat import FlatModel


class FedProx(FedAvg):
    """Clients minimise loss + mu/2 |w - w_global|^2, mu = averaging.proximal; 0 is FedAvg."""

    def correct(self, student: FlatModel, start: Tensor, state: dict[str, Tensor]) -> None:
        weights = student.trainable.detach()
        student.trainable_gradient.add_(weights - start[: weights.numel()], alpha=self.config.averaging.proximal)
