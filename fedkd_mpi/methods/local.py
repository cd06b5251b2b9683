"""Teachers that are trained on labels only, without an exchange.

`local`: every client trains on its own data (lower reference). `centralized`: one client has all data (upper
reference).
"""

from __future__ import annotations

from torch import Tensor, nn

from fedkd_mpi.methods import Method, make_teacher
from fedkd_mpi.tasks import Examples


class Local(Method):
    """Training with the supervised loss only (equation 1)."""

    exchanges = False

    def private(self, architecture: int = 0) -> nn.ModuleDict:
        return nn.ModuleDict({"teacher": make_teacher(self.config, self.task, architecture)})

    def loss(self, private: nn.ModuleDict, student: nn.Module | None, batch: Examples) -> tuple[Tensor, Tensor, Tensor]:
        loss = self.task.loss(self.task.predict(private["teacher"], batch), batch)
        return loss, loss.detach(), loss.new_full((), float("nan"))
