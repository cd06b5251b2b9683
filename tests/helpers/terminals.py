"""A program on a terminal of its own, as a person starts it: what the terminal showed, and keys that are pressed."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import termios
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from mpirun import PATIENCE, clean_environment

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
CTRL_C = b"\x03"


class OnTerminal:
    """A command on a terminal of so many columns; the program is ended with the block."""

    def __init__(self, columns: int, command: Sequence[str | Path], folder: Path, env: Mapping[str, str] = {}):
        self._raw, environment = b"", {**clean_environment(env), "TERM": "xterm-256color"}
        self.pid, self._terminal = pty.fork()
        if self.pid == 0:
            try:
                os.chdir(folder)
                time.sleep(0.2)  # until the size is set
                os.execvpe(str(command[0]), [str(word) for word in command], environment)
            finally:
                os._exit(127)
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))

    def __enter__(self) -> OnTerminal:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self._terminal)

    @property
    def text(self) -> str:
        """All that was shown, without colours; each drawing of a live line is a line."""
        shown = self._raw.decode(errors="replace").replace("\x1b[2K", "\n").replace("\r", "")
        return CONTROL.sub("", shown)

    @property
    def raw(self) -> str:
        """All that was shown, with its control sequences."""
        return self._raw.decode(errors="replace")

    def until(self, pattern: str) -> None:
        """Wait until the terminal shows what a regular expression describes."""
        end = time.monotonic() + PATIENCE
        while not re.search(pattern, self.text):
            assert self._read(end), f"{pattern} was not shown, but:\n{self.text}"

    def press(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self._terminal, keys)

    def wait(self) -> int:
        """Return the exit code of the program."""
        end = time.monotonic() + PATIENCE
        while self._read(end):
            pass
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def _read(self, end: float) -> bool:
        ready, _, _ = select.select([self._terminal], [], [], max(end - time.monotonic(), 0))
        assert ready, f"the program does not go on; the terminal shows:\n{self.text}"
        try:
            data = os.read(self._terminal, 65536)
        except OSError:  # all programs on the terminal have ended
            return False
        self._raw += data
        return bool(data)
