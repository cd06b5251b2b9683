"""FedKD: private teacher and shared student learn from the labels and from each other (equations 1-7 of the paper)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

from torch import Tensor, nn

from fedkd_mpi.common.torch_streams import torch_scope
from fedkd_mpi.config.schema import Config
from fedkd_mpi.distillation import HiddenMap, Losses, fedkd_loss
from fedkd_mpi.methods import Method, make_teacher
from fedkd_mpi.models.output import hidden_sizes
from fedkd_mpi.models.plain import lacks_features
from fedkd_mpi.tasks import Examples, Task


class FedKD(Method):
    """Teacher and W_h are private and share the teacher's optimiser; the student is exchanged."""

    def __init__(self, config: Config, task: Task):
        super().__init__(config, task)
        self.settings = config.distillation
        self.hidden = self.settings.hidden
        with torch_scope(config.seed, "student shapes"):
            student = self.student()
            plain = self._without_features(student) if self.hidden else []
        self._student_sizes = hidden_sizes(student)
        if plain:
            self.hidden = False
            self.notes.append(
                f"{' and '.join(plain)}: the network returns logits alone, so equation 5 has no hidden term;"
                f" {plain[0]}.features names layers to compare"
            )
        switches = self.settings.model_dump(include={"adaptive", "logits", "attention", "floor"})
        self._loss: Callable[..., tuple[Tensor, Losses]] = partial(fedkd_loss, hidden=self.hidden, **switches)

    def _without_features(self, student: nn.Module) -> list[str]:
        """Return the sections of the networks that have no hidden features; only a user's own can be such."""
        teachers = self.config.architectures
        keys = [f"teachers.{index}" if self.config.teachers else "teacher" for index in range(len(teachers))]
        networks = [
            (key, make_teacher(self.config, self.task, index))
            for index, (key, network) in enumerate(zip(keys, teachers, strict=True))
            if ":" in network.name
        ]
        return [key for key, network in [*networks, ("student", student)] if lacks_features(network)]

    def private(self, architecture: int = 0) -> nn.ModuleDict:
        networks = nn.ModuleDict({"teacher": make_teacher(self.config, self.task, architecture)})
        if self.hidden:
            widths = hidden_sizes(networks["teacher"])
            networks["hidden_map"] = HiddenMap(widths, self._student_sizes, shared=self.settings.shared_map)
        return networks

    def loss(self, private: nn.ModuleDict, student: nn.Module | None, batch: Examples) -> tuple[Tensor, Tensor, Tensor]:
        assert student is not None  # the method exchanges one
        of_teacher = self.task.predict(private["teacher"], batch)
        of_student = self.task.predict(student, batch)
        total, losses = self._loss(
            of_teacher,
            of_student,
            self.task.loss(of_teacher, batch),
            self.task.loss(of_student, batch),
            cast("HiddenMap", private["hidden_map"]) if self.hidden else None,
            distance=partial(self.task.distance, batch=batch),
        )
        return total, losses.supervised_teacher, losses.supervised_student
