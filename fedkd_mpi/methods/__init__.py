"""Methods: the loss of a client's networks and which network is exchanged; one file per method."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fedkd_mpi import models
from fedkd_mpi.common.options import own_options
from fedkd_mpi.common.registry import resolve, subclass_of
from fedkd_mpi.common.remembered import Kind
from fedkd_mpi.config.methods import METHODS
from fedkd_mpi.config.schema import Config
from fedkd_mpi.models.options import FAMILIES, called
from fedkd_mpi.models.state_file import start_from
from fedkd_mpi.tasks import Examples, Task

if TYPE_CHECKING:
    from fedkd_mpi.models.flat import FlatModel


class Method:
    """Created once per process as Method(config, task); contains no state of clients.

    The trainable parameters and floating-point buffers of the network of student() are exchanged. `role` is the section
    of the configuration with its learning rate. `options` are the keys of `method` beside its name, with the defaults
    of the class `Options` of a user's own method, if it has one.
    """

    exchanges = True  # whether there is a student that is exchanged
    predicts = True  # whether that student is a network of its own, which can be scored and exported
    role = "student"

    def __init__(self, config: Config, task: Task):
        self.config, self.task = config, task
        self.options = own_options(type(self), config.method.options(), config.method.name, "method")
        self.notes: list[str] = []  # what a user is told once, when the run begins

    def private(self, architecture: int = 0) -> nn.ModuleDict:
        """Return new private networks of a client: its teacher as "teacher", and others that are not exchanged.

        `architecture` is the index of the teacher's architecture in config.architectures.
        """
        return nn.ModuleDict()

    def student(self) -> nn.Module:
        """Return a new student; only called if the method exchanges one."""
        return make_model(self.config, self.task, self.role)

    def exchanged(self) -> str:
        """Return what is exchanged, for people: the name of the student's network."""
        network = self.config.network(self.role)
        return called(network.name, network.options())

    def examine(self, student: nn.Module, batch: Examples) -> None:
        """Check the student on a batch before the first round; raises UserError. The default accepts everything."""

    def remembers(self, student: FlatModel) -> dict[str, Kind]:
        """Return what `state` holds after finish(); nothing unless a method says so."""
        return {}

    def begin(self, round_index: int, device: str) -> None:
        """Prepare for local training in a round; called before each local training."""

    def loss(self, private: nn.ModuleDict, student: nn.Module | None, batch: Examples) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss to differentiate for all networks, and the losses of teacher and student for the log.

        A fourth parameter named `start` gets the global student of the round: its tensors by name.
        """
        raise NotImplementedError

    def correct(self, student: FlatModel, start: Tensor, state: dict[str, Tensor]) -> None:
        """Modify the student's gradient in place before a step.

        `start` is the global student, flat as student.state. `state` belongs to the client and is kept between rounds.
        """

    def finish(self, student: FlatModel, start: Tensor, state: dict[str, Tensor]) -> None:
        """Modify the student after the last step of local training, before the update is computed."""

    def settle(self, private: nn.ModuleDict, student: nn.Module) -> None:
        """Modify the private networks after finish(), as where they have a part in common with the student."""


def wants_start(method: Method) -> bool:
    """Return whether a method's loss has the parameter `start`."""
    return "start" in inspect.signature(method.loss).parameters


def make_model(config: Config, task: Task, role: str) -> nn.Module:
    """Return a new network for the task: the student, or the teacher if all clients have the same architecture."""
    network = config.network(role)
    return models.build(network.name, task.input_shape, task.num_classes, network.options(), role, network.features)


def make_teacher(config: Config, task: Task, architecture: int) -> nn.Module:
    """Return a new teacher of one of config.architectures for the task."""
    network = config.architectures[architecture]
    key = f"teachers.{architecture}" if config.teachers else "teacher"
    return models.build(network.name, task.input_shape, task.num_classes, network.options(), key, network.features)


def sizing(config: Config) -> torch.device:
    """Return the device on which to build networks whose sizes alone matter; a context, as every torch.device is.

    It is "meta", where tensors take no memory. Modules of users may compute with numbers while they are built, which
    such tensors do not have, so they are built on the CPU.
    """
    of_this_package = config.method.name in METHODS and all(net.name in FAMILIES for net in config.architectures)
    return torch.device("meta" if of_this_package and config.student.name in FAMILIES else "cpu")


def new_student(config: Config, method: Method) -> nn.Module:
    """Return the shared student as a run starts with it: that of the file which `init` names, or a new one."""
    return started(config, method.role, method.student()) if method.predicts else method.student()


def new_private(config: Config, method: Method, architecture: int) -> nn.ModuleDict:
    """Return a client's private networks as it starts with them, the teacher from the file which `init` names."""
    networks = method.private(architecture)
    if "teacher" in networks:
        started(config, "teacher", networks["teacher"])
    return networks


def started(config: Config, role: str, module: nn.Module) -> nn.Module:
    """Return a network with the values of the file which `init` names for a role, if there is one."""
    path = getattr(config.init, role)
    if path is not None:
        start_from(module, path, getattr(config.init, f"{role}_digest"), f"init.{role}")
    return module


def build(config: Config, task: Task) -> Method:
    """Return the method that the configuration names."""
    paths = {name: entry.path for name, entry in METHODS.items()}
    method: type[Method] = resolve(config.method.name, paths, "method", subclass_of(Method, "method"))
    return method(config, task)
