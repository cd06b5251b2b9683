"""FML: a private and a shared network learn from each other's predictions (Shen et al. 2020, arXiv:2006.16765)."""

from __future__ import annotations

from functools import partial

from pydantic import Field
from torch import Tensor, nn

from fedkd_mpi.common.options import Options as Checked
from fedkd_mpi.methods import Method, make_teacher
from fedkd_mpi.tasks import Examples


class FML(Method):
    """The teacher is the paper's personalised network, the student its meme network, which is exchanged.

    With CE the supervised loss and KL(reference || prediction), whose reference is a constant, a batch has the losses

        alpha CE(teacher) + (1 - alpha) KL(student || teacher)
        beta  CE(student) + (1 - beta)  KL(teacher || student)

    Source: equations 3 and 4 of the paper. The server averages the students: codec `none` is the paper's.
    """

    class Options(Checked):
        alpha: float = Field(0.5, ge=0, le=1)
        beta: float = Field(0.5, ge=0, le=1)

    def private(self, architecture: int = 0) -> nn.ModuleDict:
        return nn.ModuleDict({"teacher": make_teacher(self.config, self.task, architecture)})

    def loss(self, private: nn.ModuleDict, student: nn.Module | None, batch: Examples) -> tuple[Tensor, Tensor, Tensor]:
        assert student is not None  # the method exchanges one
        alpha, beta = self.options["alpha"], self.options["beta"]
        distance = partial(self.task.distance, batch=batch)
        teacher, shared = self.task.predict(private["teacher"], batch), self.task.predict(student, batch)
        of_teacher, of_student = self.task.loss(teacher, batch), self.task.loss(shared, batch)
        total = alpha * of_teacher + (1 - alpha) * distance(shared, teacher)
        total = total + beta * of_student + (1 - beta) * distance(teacher, shared)
        return total, of_teacher.detach(), of_student.detach()
