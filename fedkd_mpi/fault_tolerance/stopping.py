"""Requests to stop a run: signals, the STOP file, the time limit and the end of the Slurm job."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from fedkd_mpi.fault_tolerance import early_signals
from fedkd_mpi.fault_tolerance.stop_notice import StopNotice

if TYPE_CHECKING:
    from fedkd_mpi.communication.world import World


STOP = "STOP"  # a file of this name beside the log
ASKING = 10.0  # seconds to wait for Slurm's answer


class StopRequests:
    """Records signals on every process; on rank 0 it also checks the STOP file, <log>.stop and the time.

    As a context manager it handles SIGTERM, SIGUSR1, SIGINT and SIGHUP inside the block, including those received
    before it. A second SIGINT ends the job at once. SIGUSR1 warns of the end of the job. The run still completes its
    first round then, because otherwise a run with a time limit shorter than the warning would make no progress. The
    file <log>.stop means the same without a signal, which would kill processes that do not listen yet; rank 0 of a run
    whose rounds have begun removes it at the end. `time_limit` is in seconds from now, `slurm_end` in seconds since
    1970. `notice` returns on rank 0 what the user needs if the run is ended before it can stop: it is written when the
    first signal arrives. With `goes_on` the process goes on after the run: signals are handled in its main thread
    alone, a second SIGINT raises KeyboardInterrupt in a process alone, and no notice is written.
    """

    def __init__(
        self,
        world: World,
        log: Path,
        time_limit: float | None,
        slurm_end: float | None = None,
        *,
        goes_on: bool = False,
    ):
        self.world, self.file, self.own = world, log.parent / STOP, Path(f"{log}.stop")
        self.heard: str | None = None
        self.notice: Callable[[], str] | None = None
        self._goes_on = goes_on
        told = world.is_root and not goes_on
        self._told = StopNotice(early_signals.SIGNALS, self._tell) if told else nullcontext()
        self._begun = self._interrupted = self._warned = False  # _warned: only SIGUSR1 has been received so far
        limits = [] if time_limit is None else [(time.time() + time_limit, f"time_limit ({time_limit:.0f} s)")]
        if slurm_end is not None:
            past = ", which had passed at the start" if slurm_end <= time.time() else ""
            limits.append((slurm_end, f"the end of the Slurm job{past}"))
        self._limit = min(limits, default=None)

    def __enter__(self) -> StopRequests:
        handled = threading.current_thread() is threading.main_thread() or not self._goes_on
        for number in () if self._goes_on else early_signals.heard:
            self._note(number, None)
        numbers = early_signals.obeyed() if handled else ()
        self._before = [(number, signal.signal(number, self._note)) for number in numbers]
        if not self._goes_on:  # the mask may be inherited from a launcher
            signal.pthread_sigmask(signal.SIG_UNBLOCK, early_signals.SIGNALS)
        self._told.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._told.__exit__(*error)
        for number, handler in self._before:
            signal.signal(number, handler)
        # It may arrive while a completed run ends.
        if not self._goes_on and signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL:
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        if self.world.is_root and self._begun:
            with suppress(OSError):
                self.own.unlink()

    def reason(self, seconds_needed: float) -> str | None:
        """Return why this process should stop, or None; on rank 0 also if `seconds_needed` exceed the time limit."""
        self._begun = True
        if self.heard and (seconds_needed or not self._warned):  # 0: no round has been run yet
            return self.heard
        if not self.world.is_root:
            return None
        if self.file.exists():
            return f"the file {self.file}"
        if seconds_needed and self.own.exists():
            return f"the file {self.own}"
        if self._limit and seconds_needed and time.time() + seconds_needed > self._limit[0]:
            return f"another round would not end before {self._limit[1]}"
        return None

    def _tell(self, name: str) -> str:
        if self.notice is None:
            return ""
        sooner = ", if mpirun does not end it sooner" if "OMPI_COMM_WORLD_SIZE" in os.environ else ""
        again = "; a second SIGINT ends it at once" if name == "SIGINT" else ""
        return f"fedkd_mpi: {name}: the run stops after this round with a checkpoint{sooner}{again}\n{self.notice()}"

    def _note(self, number: int, _: FrameType | None) -> None:
        where = f"rank {self.world.mpi_rank} on {self.world.hostname}"
        if number == signal.SIGINT and self._interrupted:
            if self._goes_on and self.world.world_size == 1:
                raise KeyboardInterrupt
            self.world.fault(f"fedkd_mpi: {where}: second SIGINT, the run is ended at once")
        self._interrupted |= number == signal.SIGINT
        self._warned = number == signal.SIGUSR1 and (self._warned or not self.heard)
        self.heard = f"{signal.Signals(number).name} at {where}"


def slurm_end() -> float | None:
    """Return when Slurm will end the job of this process, in seconds since 1970; None without a job or a limit."""
    if end := os.environ.get("SLURM_JOB_END_TIME"):  # since Slurm 23.02
        with suppress(ValueError):  # invalid: ask Slurm itself
            return float(end)
    if not (job := os.environ.get("SLURM_JOB_ID")) or not shutil.which("squeue"):
        return None
    command = ["squeue", "--noheader", "--format=%e", f"--jobs={job}"]
    try:
        environment = os.environ | {"SLURM_TIME_FORMAT": "standard"}
        asked = subprocess.run(command, capture_output=True, text=True, timeout=ASKING, env=environment, check=True)
        return datetime.fromisoformat(asked.stdout.strip()).timestamp()
    except (OSError, subprocess.SubprocessError, ValueError):  # "N/A" without a limit; sbatch --signal still works
        return None
