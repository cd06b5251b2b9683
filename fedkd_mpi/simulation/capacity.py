"""The capacity of this machine, so that configurations that exceed it are refused before allocation."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from fedkd_mpi.common.machine import require_memory
from fedkd_mpi.config.methods import has_student
from fedkd_mpi.errors import UserError
from fedkd_mpi.models.options import FAMILIES

if TYPE_CHECKING:
    from torch import nn

    from fedkd_mpi.config.schema import Config
    from fedkd_mpi.tasks import Task

NUMBER = 8  # bytes of a parameter and its gradient in float32


def cores() -> int:
    """Return the number of cores of this node."""
    return os.cpu_count() or 1


def require_threads(threads: int) -> None:
    """Raise UserError if a process would use more threads than its node has cores."""
    if threads > cores():
        raise UserError(
            f"threads_per_rank={threads} is more than this node's {cores()} cores: set at most {cores()}, or auto"
        )


def require_networks(config: Config, task: Task) -> None:
    """Raise UserError naming a network of this package whose shapes do not fit into memory."""
    from fedkd_mpi import methods

    networks = {}
    exchanged = config.averaging.network if config.averages else "student"
    if has_student(config.method.name) and exchanged == "student":
        networks["student"] = (config.student, partial(methods.make_model, config, task, "student"))
    for index, network in enumerate(config.architectures):
        key = f"teachers.{index}" if config.teachers else "teacher"
        networks[key] = (network, partial(methods.make_teacher, config, task, index))
    for key, (network, make) in networks.items():
        if network.name in FAMILIES:
            _require(key, numbers_of(make, config.seed), network.name)


def numbers_of(make: Callable[[], nn.Module], seed: int) -> int:
    """Return the number of parameters of the network that `make` builds, without allocating them."""
    import torch

    from fedkd_mpi.common.torch_streams import torch_scope

    with torch_scope(seed, "shapes"), torch.device("meta"):
        model = make()
    return sum(tensor.numel() for tensor in model.parameters())


def _require(key: str, numbers: int, name: str) -> None:
    what = f"{key}: a {name} of {numbers:,} parameters with its gradients"
    require_memory(what, NUMBER * numbers, "make it smaller")
