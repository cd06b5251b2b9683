"""Starts the run command with several ranks from Python, shows what it prints, and turns its end into exceptions."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from os import EX_TEMPFAIL  # exit code of a run that stopped early with a checkpoint
from pathlib import Path
from typing import IO

from fedkd_mpi import costlog
from fedkd_mpi.common.console import say
from fedkd_mpi.communication.launch import launcher
from fedkd_mpi.config.schema import Config
from fedkd_mpi.errors import RunFault, UserError, shown

LOG = "log: "  # begins the line in which a run names its log
OURS = "fedkd_mpi: "  # begins a message
STOPPED = " rounds: "  # in the event of a run that stopped early, before the reason
PATIENCE = 10.0  # seconds for a launcher to end after SIGTERM, and for what it printed to be read


def run(config: Config, arguments: Sequence[str], ranks: int, launch: str, *, resumes: bool) -> tuple[Path, str | None]:
    """Run the command with so many ranks; return the log and why the run stopped early, None if it is completed.

    Raises UserError where the command ends with exit code 2, RunFault where it fails otherwise.
    """
    if ranks < 1:
        raise UserError(f"ranks={ranks}: must be at least 1")
    if launcher():
        raise UserError(f"ranks={ranks}: {launcher()} started this process: without ranks, run() takes part with it")
    try:
        command = [*shlex.split(launch), "-n", str(ranks), sys.executable, "-m", "fedkd_mpi.run", *arguments]
    except ValueError as error:
        raise UserError(f"launch='{shown(launch)}': {str(error).lower()}") from None
    with tempfile.TemporaryDirectory(prefix="fedkd-") as folder:
        if not resumes:
            file = Path(folder, "config.yaml")
            file.write_text(config.to_yaml(), encoding="utf-8")
            command += ["--config", str(file)]
        out, err, code = _watched(command)
    log = next((Path(line.removeprefix(LOG)) for line in out if line.startswith(LOG)), None)
    if code in (0, EX_TEMPFAIL) and log:
        if err and err[-1].startswith(OURS):
            say(err[-1], error=True)
        return log, _reason(log) if code else None
    at = max((index for index, line in enumerate(err) if line.startswith(OURS)), default=None)
    if code == 2 and at is not None:
        raise UserError(err[at].removeprefix(OURS))
    text = "\n".join(err[-20:] if at is None else err[at:]).removeprefix(OURS)
    raise RunFault(f"exit code {code}: {text or 'no message was printed'}")


def _watched(command: Sequence[str]) -> tuple[list[str], list[str], int]:
    """Run a command, show what it prints, and return its lines and its exit code.

    It has a session of its own, so that Ctrl-C reaches this process alone, which asks the run to stop after its round.
    A second Ctrl-C ends it.
    """
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        raise UserError(f"launch='{shown(command[0])}': {error.strerror}") from None
    out: list[str] = []
    err: list[str] = []
    readers = [
        threading.Thread(target=_show, args=(stream, lines, error), daemon=True)
        for stream, lines, error in ((process.stdout, out, False), (process.stderr, err, True))
    ]
    for reader in readers:
        reader.start()
    try:
        _wait(process)
    finally:
        for reader in readers:
            reader.join(PATIENCE)  # a process that the command has left behind may keep its streams open
    return out, err, process.returncode


def _wait(process: subprocess.Popen[str]) -> None:
    try:
        process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGUSR1)  # which launchers pass on: the run stops after its round
        try:
            process.wait()
        except KeyboardInterrupt:
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # its session, so that no rank of this machine is left
            raise


def _show(stream: IO[str], lines: list[str], error: bool) -> None:
    """Show lines as they come; a message of the run is the caller's exception, unless the run goes on after it."""
    held: list[str] = []
    for line in stream:
        lines.append(line.rstrip("\n"))
        for each in held:
            say(each, error=error)
        held = [lines[-1]] if error and lines[-1].startswith(OURS) else []
        if not held:
            say(lines[-1], error=error)


def _reason(log: Path) -> str:
    with costlog.open(log) as opened:
        texts = [text for text in opened["events"]["message"] if text.startswith("stopped after")]
    return texts[-1].partition(STOPPED)[2] if texts else "a request to stop"
