"""Local training: every client's teacher learns from its own labels alone and nothing travels; the lower reference."""

from __future__ import annotations

from torch import Tensor, nn

from fedkd_mpi.config import Config
from fedkd_mpi.methods import make_model
from fedkd_mpi.tasks import Examples, Task


class Local:
    """Equation 1 alone."""

    exchanges = False

    def __init__(self, config: Config, task: Task):
        self.config, self.task = config, task

    def private(self) -> nn.ModuleDict:
        return nn.ModuleDict({"teacher": make_model(self.config, self.task, "teacher")})

    def loss(self, private: nn.ModuleDict, student: nn.Module | None, batch: Examples) -> tuple[Tensor, Tensor, Tensor]:
        loss = self.task.loss(self.task.predict(private["teacher"], batch), batch)
        return loss, loss.detach(), loss.new_full((), float("nan"))
