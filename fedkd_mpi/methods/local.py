"""Teachers that learn from labels alone; nothing travels.

`local`: every client on its own data, the lower reference. `centralized`: one client with all data, the upper one.
"""

from __future__ import annotations

from torch import Tensor, nn

from fedkd_mpi.methods import Method, make_teacher
from fedkd_mpi.tasks import Examples


class Local(Method):
    """Equation 1 alone."""

    exchanges = False

    def private(self, architecture: int = 0) -> nn.ModuleDict:
        return nn.ModuleDict({"teacher": make_teacher(self.config, self.task, architecture)})

    def loss(self, private: nn.ModuleDict, student: nn.Module | None, batch: Examples) -> tuple[Tensor, Tensor, Tensor]:
        loss = self.task.loss(self.task.predict(private["teacher"], batch), batch)
        return loss, loss.detach(), loss.new_full((), float("nan"))
