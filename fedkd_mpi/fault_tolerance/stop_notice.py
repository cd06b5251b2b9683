"""Tells the user at once that a signal has been received, and what to do if the run cannot stop by itself.

Open MPI's mpirun ends the ranks a fraction of a second after Ctrl-C, and prints no more of what they say. So rank 0
writes to the launcher's stderr itself. A thread does it, because Python runs a signal's handler only between two
bytecodes of the main thread, which may be inside native code for longer than that.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from fedkd_mpi.communication import terminal

ENDING = 10.0  # seconds to wait for the thread's end
CLEAR = "\r\x1b[2K"  # to the start of the line, which is erased


class StopNotice:
    """As a context manager, on rank 0 and in the main thread: writes one notice for the first signal that arrives.

    `text` returns what is written, for the name of the signal; an empty text is not written.
    """

    def __init__(self, numbers: tuple[int, ...], text: Callable[[str], str]):
        self._numbers, self._text = numbers, text

    def __enter__(self) -> StopNotice:
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._listen, name="stop notice", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.set_wakeup_fd(self._before)
        self._writer.close()  # ends the thread
        self._thread.join(ENDING)
        self._reader.close()

    def _listen(self) -> None:
        while received := self._reader.recv(1):
            if received[0] in self._numbers and (text := self._text(signal.Signals(received[0]).name)):
                write(text)
                return


def write(text: str) -> None:
    """Write lines to the stderr that the user sees: the launcher's, if it is Open MPI's and on this machine.

    It is this process's own if a script redirected that. If the launcher's is a file to which it does not append, it
    would write over the lines. So they are written to this process's own stderr too: the launcher replaces them by
    the same lines, or ends without.
    """
    behind = "OMPI_COMM_WORLD_SIZE" in os.environ and not terminal.redirected()
    number = terminal.launching_process() if behind else None
    with suppress(OSError):
        if number is None:
            _write(os.dup(2), text)
            return
        target = os.open(f"/proc/{number}/fd/2", os.O_WRONLY | os.O_APPEND | os.O_NOCTTY)
        twice = stat.S_ISREG(os.fstat(target).st_mode) and not _appends(number)
        _write(target, text)
        if twice:
            _write(os.dup(2), text)


def _write(target: int, text: str) -> None:
    """Write lines to a descriptor and close it."""
    try:
        os.write(target, f"{CLEAR if os.isatty(target) else ''}{text}\n".encode())
    finally:
        os.close(target)


def _appends(process: int) -> bool:
    """Return whether a process writes its stderr always to the end of the file."""
    flags = re.search(r"^flags:\s*([0-7]+)$", Path(f"/proc/{process}/fdinfo/2").read_text(), re.MULTILINE)
    return flags is not None and bool(int(flags[1], 8) & os.O_APPEND)
