"""run --supervise: launches a run, and launches it again from its checkpoint when it was cut off."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from fedkd_mpi.common.console import say
from fedkd_mpi.config.schema import Config
from fedkd_mpi.costlog.files import real
from fedkd_mpi.errors import UserError, shown
from fedkd_mpi.fault_tolerance import early_signals, ending, log_lock
from fedkd_mpi.fault_tolerance.ending import Watch
from fedkd_mpi.simulation.request import default_output

GRACE = 60.0  # seconds that a launcher may outlive its run
PAUSE = 2.0  # seconds before another launch


class Supervisor:
    """Launches and watches the run of one log. A signal stops it after its round; a second SIGINT ends it at once.

    The launcher has a session of its own, so that Ctrl-C reaches this process alone: Open MPI's mpirun would kill its
    ranks. Raises UserError if `launcher` is no command line.
    """

    def __init__(self, launcher: str, log: Path, grace: float = GRACE):
        try:
            self._launcher = shlex.split(launcher)
        except ValueError as error:
            raise UserError(f"--supervise '{shown(launcher)}': {str(error).lower()}") from None
        self.log, self._grace = log, grace
        self._stop_file = Path(f"{log}.stop")
        self._process: subprocess.Popen[bytes] | None = None
        self._heard: list[int] = []

    def run(self, first: Sequence[str], again: Sequence[str], restarts: int) -> int:
        """Launch the run with the arguments `first`, then with `again` as often as needed; return the exit code.

        Raises UserError if the launcher cannot be started or the log cannot be read.
        """
        ending.begin(self.log)
        arguments = first
        with self._listening():
            while True:
                watch = Watch(self.log)
                code = self._launch(arguments, watch)
                if watch.begun():
                    arguments = again
                found = ending.judge(self.log, code, restarts)
                if found.kind in ("cut off", "given up"):
                    say(f"fedkd_mpi: {found.text}", error=True)
                if found.kind != "cut off" or self._heard:
                    return found.code
                time.sleep(PAUSE)

    def _launch(self, arguments: Sequence[str], watch: Watch) -> int:
        """Run the launcher to its end and return its exit code, as a shell would."""
        command = [*self._launcher, sys.executable, "-m", "fedkd_mpi.run", *arguments]
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
        except OSError as error:
            raise UserError(f"--supervise: {shown(command[0])}: {error.strerror}") from None
        self._process = process
        ending.await_launcher(watch, lambda: process.poll() is None, self._end, self._grace)
        self._process = None
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # ranks that a killed launcher has left on this machine
        return process.returncode if process.returncode >= 0 else 128 - process.returncode

    def _end(self, number: int) -> None:
        if process := self._process:
            if number == signal.SIGKILL:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
            else:
                process.send_signal(number)

    @contextmanager
    def _listening(self) -> Iterator[None]:
        before = [(number, signal.signal(number, self._note)) for number in early_signals.obeyed()]
        for number in early_signals.heard:
            self._note(number, None)
        try:
            yield
        finally:
            for number, handler in before:
                signal.signal(number, handler)
            if self._heard:
                self._stop_file.unlink(missing_ok=True)

    def _note(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and number in self._heard:
            # A launcher ends its ranks; a process alone would take SIGTERM for a request to stop after its round.
            self._end(signal.SIGTERM if self._launcher else signal.SIGKILL)
            return
        self._heard.append(number)
        with suppress(OSError):  # without a folder there is no run to stop
            self._stop_file.touch()
        say(
            f"fedkd_mpi: {signal.Signals(number).name}: the run stops after this round; a second SIGINT ends it at once"
        )


def supervise(config: Config, chosen: Namespace, restarts: int) -> int:
    """Run a parsed command line of fedkd_mpi.run under a supervisor and return the exit code; raises UserError."""
    if chosen.resume:
        log = real(chosen.resume)
    elif chosen.output:
        log = real(chosen.output)
    else:
        with log_lock.reserve(real(default_output(config))) as lock:
            log = lock.log
    resume = ["--resume", str(log), "--trust-log"]
    if chosen.resume:
        first = [*chosen.overrides, "--resume", str(log), *(["--trust-log"] if chosen.trust_log else [])]
    else:
        first = [*chosen.overrides, "--output", str(log)]
        first += ["--config", str(chosen.config)] if chosen.config else []
        first += ["--save-partition", str(chosen.save_partition)] if chosen.save_partition else []
        first += [
            option for option, given in (("--overwrite", chosen.overwrite), ("--trust-log", chosen.trust_log)) if given
        ]
    return Supervisor(chosen.supervise, log).run(first, resume, restarts)
