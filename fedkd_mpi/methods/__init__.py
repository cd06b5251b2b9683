"""Methods: what a client learns from a batch and which of its networks is exchanged; one file per method."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from fedkd_mpi import models
from fedkd_mpi.common.registry import resolve, subclass_of
from fedkd_mpi.config.methods import METHODS
from fedkd_mpi.config.schema import Config
from fedkd_mpi.tasks import Examples, Task

if TYPE_CHECKING:
    from fedkd_mpi.models.flat import FlatModel


class Method:
    """Built once per process as Method(config, task); holds no state of clients.

    What travels are the trainable parameters and floating-point buffers of the network that student() returns;
    `role` is the section of the configuration that names its learning rate.
    """

    exchanges = True  # whether there is a student that travels
    role = "student"

    def __init__(self, config: Config, task: Task):
        self.config, self.task = config, task

    def private(self, architecture: int = 0) -> nn.ModuleDict:
        """Return new private networks of a client: its teacher under "teacher", and what else it keeps.

        `architecture` says which of config.architectures its teacher has.
        """
        return nn.ModuleDict()

    def student(self) -> nn.Module:
        """Return the shared student, newly initialised (only asked for where the method exchanges)."""
        return make_model(self.config, self.task, self.role)

    def begin(self, round_index: int, device: str) -> None:
        """Prepare for the local trainings of a round; called before each of them."""

    def loss(self, private: nn.ModuleDict, student: nn.Module | None, batch: Examples) -> tuple[Tensor, Tensor, Tensor]:
        """Return what to differentiate once for all networks, and the teacher's and the student's own loss to log."""
        raise NotImplementedError

    def correct(self, student: FlatModel, start: Tensor, state: dict[str, Tensor]) -> None:
        """Change the student's gradient in place before a step.

        `start` is the global student, flat as student.state; `state` is the client's own and lives across rounds.
        """

    def finish(self, student: FlatModel, start: Tensor, state: dict[str, Tensor]) -> None:
        """Change the student, from which the update is then taken, after the last step of a local training."""


def make_model(config: Config, task: Task, role: str) -> nn.Module:
    """Return a new student, or a new teacher where all clients have the same, for the task."""
    network = config.network(role)
    return models.build(network.name, task.input_shape, task.num_classes, network.options(), role)


def make_teacher(config: Config, task: Task, architecture: int) -> nn.Module:
    """Return a new teacher of one of config.architectures for the task."""
    network = config.architectures[architecture]
    key = f"teachers.{architecture}" if config.teachers else "teacher"
    return models.build(network.name, task.input_shape, task.num_classes, network.options(), key)


def build(config: Config, task: Task) -> Method:
    """Return the method that the configuration names."""
    paths = {name: entry.path for name, entry in METHODS.items()}
    return resolve(config.method, paths, "method", subclass_of(Method, "method"))(config, task)
