"""FedKD: private teacher and shared student learn from the labels and from each other (equations 1-7 of the paper)."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from fedkd_mpi.common.torch_streams import torch_scope
from fedkd_mpi.config.schema import Config
from fedkd_mpi.distillation import HiddenMap, fedkd_loss
from fedkd_mpi.methods import Method, make_teacher
from fedkd_mpi.tasks import Examples, Task


class FedKD(Method):
    """Teacher and W_h are private and share the teacher's optimiser; the student is exchanged."""

    def __init__(self, config: Config, task: Task):
        super().__init__(config, task)
        self.settings = config.distillation
        switches = self.settings.model_dump(include={"adaptive", "logits", "hidden", "attention", "floor"})
        self._loss = partial(fedkd_loss, **switches)
        with torch_scope(config.seed, "student shapes"):
            self._student_sizes = self.student().hidden_sizes

    def private(self, architecture: int = 0) -> nn.ModuleDict:
        networks = nn.ModuleDict({"teacher": make_teacher(self.config, self.task, architecture)})
        if self.settings.hidden:
            sizes = networks["teacher"].hidden_sizes, self._student_sizes
            networks["hidden_map"] = HiddenMap(*sizes, shared=self.settings.shared_map)
        return networks

    def loss(self, private: nn.ModuleDict, student: nn.Module | None, batch: Examples) -> tuple[Tensor, Tensor, Tensor]:
        of_teacher = self.task.predict(private["teacher"], batch)
        of_student = self.task.predict(student, batch)
        total, losses = self._loss(
            of_teacher,
            of_student,
            self.task.loss(of_teacher, batch),
            self.task.loss(of_student, batch),
            private["hidden_map"] if self.settings.hidden else None,
            distance=partial(self.task.distance, batch=batch),
        )
        return total, losses.supervised_teacher, losses.supervised_student
