"""Finds the terminal of the person who watches a run, also behind a launcher.

A launcher reads what a rank prints through a pipe and prints it on. Open MPI gives each rank a pseudo-terminal as
stdout, whatever its own stdout is; MPICH gives pipes. So a rank's own streams say nothing about the terminal. The
launcher's stderr does, which Linux shows in /proc if the launcher is on the same machine. A live line is written there
directly, because Open MPI passes on whole lines only.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import sys
import termios
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fedkd_mpi.common.console import Lenient
from fedkd_mpi.communication.launch import launcher

# The processes between a rank and the person, as /proc/PID/comm has their names (at most 15 characters).
LAUNCHERS = re.compile(r"(mpirun|mpiexec|orterun|prterun|prted?|hydra_pmi_proxy|hydra_bstrap_pr)(\..*)?")
DUMB = ("", "dumb", "unknown")  # values of TERM for terminals without control sequences
NARROWEST = 60  # columns; a narrower terminal wraps lines


@dataclass(frozen=True)
class Terminal:
    """A terminal that shows stderr; `shows_stdout` says whether it shows stdout as well.

    `path` is its device, None if it is that of this process's own stderr.
    """

    path: Path | None
    shows_stdout: bool

    def width(self) -> int:
        """Return its present number of columns, at least NARROWEST."""
        with suppress(OSError):
            if self.path is None:
                return max(NARROWEST, os.get_terminal_size(2).columns)
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
            try:
                return max(NARROWEST, os.get_terminal_size(descriptor).columns)
            finally:
                os.close(descriptor)
        return NARROWEST

    def stream(self) -> Lenient:
        """Return a stream to the terminal."""
        with suppress(OSError):
            return Lenient(None if self.path is None else self.path.open("w", encoding="utf-8", errors="replace"))
        return Lenient()


def find() -> Terminal | None:
    """Return the terminal of stderr: this process's own or, behind a launcher of this machine, the launcher's.

    None if stderr leads elsewhere, for example into a file or to another machine, or the terminal is a dumb one. A rank
    that a script started with a redirected stderr has none either.
    """
    if os.environ.get("TERM", "") in DUMB:
        return None
    if redirected():
        return None
    if launcher() is None:
        if sys.stderr is None or not _is_terminal(sys.stderr):
            return None
        return Terminal(None, _is_terminal(sys.stdout))
    number = launching_process()
    errors, output = (_device(number, descriptor) for descriptor in (2, 1)) if number else (None, None)
    return Terminal(errors, output == errors) if errors else None


def redirected() -> bool:
    """Return whether stderr leads into a file or is discarded: a launcher's pipe or terminal does neither."""
    try:
        mode = os.fstat(2).st_mode
    except OSError:
        return True
    return stat.S_ISREG(mode) or (stat.S_ISCHR(mode) and not os.isatty(2))


def launching_process() -> int | None:
    """Return the process id of the launcher that started this process, None if it is not on this machine."""
    number, found = os.getppid(), None
    with suppress(OSError, ValueError, IndexError):
        while number > 1:
            name, _, fields = Path(f"/proc/{number}/stat").read_text().partition("(")[2].rpartition(")")
            if LAUNCHERS.fullmatch(name):
                found = number
            elif found:
                break  # the launcher's own parent, for example a shell
            number = int(fields.split()[1])
    return found


def table_width() -> int:
    """Return the columns for a table on stdout: those of the terminal, or 120 if stdout leads elsewhere."""
    if launcher() is None and sys.stdout is not None and _is_terminal(sys.stdout):
        return max(NARROWEST, shutil.get_terminal_size((120, 24)).columns)
    terminal = find() if launcher() else None
    return terminal.width() if terminal and terminal.shows_stdout else 120


def _is_terminal(stream: object) -> bool:
    try:
        return bool(stream.isatty())  # type: ignore[attr-defined]
    except (AttributeError, ValueError):
        return False


def _device(process: int, descriptor: int) -> Path | None:
    """Return the terminal to which a descriptor of another process leads; None if there is none that may be written.

    With `stty tostop` a terminal stops background processes that write, as Open MPI's ranks are.
    """
    path = Path(f"/proc/{process}/fd/{descriptor}")
    with suppress(OSError):
        target = path.readlink()
        if str(target).startswith("/dev/") and path.is_char_device() and target != Path(os.devnull):
            opened = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
            try:
                usable = os.isatty(opened) and not termios.tcgetattr(opened)[3] & termios.TOSTOP
                return target if usable else None
            finally:
                os.close(opened)
    return None
