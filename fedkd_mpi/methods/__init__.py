"""Methods: what a client learns from a batch and which of its networks is exchanged; one file per method."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from fedkd_mpi import models
from fedkd_mpi.config import Config
from fedkd_mpi.registry import resolve
from fedkd_mpi.tasks import Examples, Task

METHODS = {
    "fedkd": "fedkd_mpi.methods.fedkd:FedKD",
    "local": "fedkd_mpi.methods.local:Local",
}


class Method(Protocol):
    """Built once per process as Method(config, task); holds no state of clients."""

    exchanges: bool  # whether there is a student that travels

    def private(self) -> nn.ModuleDict:
        """Return new private networks of a client: its teacher under "teacher", and what else it keeps."""
        ...

    def student(self) -> nn.Module:
        """Return the shared student, newly initialised (only asked for where the method exchanges)."""
        ...

    def loss(self, private: nn.ModuleDict, student: nn.Module | None, batch: Examples) -> tuple[Tensor, Tensor, Tensor]:
        """Return what to differentiate once for all networks, and the teacher's and the student's own loss to log."""
        ...


def make_model(config: Config, task: Task, role: str) -> nn.Module:
    """Return a new model of the configuration's `teacher` or `student` section for the task."""
    network = getattr(config, role)
    return models.build(network.name, task.input_shape, task.num_classes, network.options(), role)


def build(config: Config, task: Task) -> Method:
    """Return the method that the configuration names."""
    return resolve(config.method, METHODS, "method")(config, task)
