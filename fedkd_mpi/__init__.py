"""FedKD over MPI: rank 0 is the server, the other ranks are clients, and every exchanged byte is logged."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from fedkd_mpi.simulation.in_python import run as run

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import the module fedkd_mpi.run, which is also the function, when it is first used."""
    if name == "run":
        return importlib.import_module("fedkd_mpi.run")
    raise AttributeError(f"module {__name__} has no attribute {name}")


def load_student(log: str | Path, round: int | str = "last", *, trust_log: bool = False) -> nn.Module:
    """Return the global student of a log as a module in eval mode, with its weights after a round.

    `round` is "last", "best" or a number of completed rounds whose checkpoint is kept. The module's `preprocess` makes
    its input of samples as the data set yields them: module(module.preprocess(x)).logits. `trust_log` runs code that
    the log names. Raises UserError where the checkpoint or the network is not there.
    """
    from fedkd_mpi.simulation import trained

    return trained.student(trained.find(log, round, trust_log=trust_log))


def load_teacher(log: str | Path, client: int, round: int | str = "last", *, trust_log: bool = False) -> nn.Module:
    """Return the teacher of a client of a log, as load_student() does the student."""
    from fedkd_mpi.simulation import trained

    return trained.teacher(trained.find(log, round, trust_log=trust_log), client)
