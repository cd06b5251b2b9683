"""Console output that works if stdout or stderr is closed, a broken pipe, or a file on a full disk."""

from __future__ import annotations

import atexit
import io
import os
import sys
from contextlib import suppress
from typing import Any, TextIO


def say(text: str, *, error: bool = False) -> OSError | None:
    """Print a line and flush it; return the error if it could not be written, which does not end a run.

    `error` prints to stderr. Characters that are missing in the stream's encoding are printed as escapes.
    """
    stream: TextIO | None = sys.stderr if error else sys.stdout  # the current streams: rich and pytest replace them
    if stream is None:
        return None
    try:
        try:
            stream.write(f"{text}\n")
        except UnicodeEncodeError:
            coding = stream.encoding or "ascii"
            stream.write(f"{text.encode(coding, 'backslashreplace').decode(coding)}\n")
        stream.flush()
    except OSError as problem:
        return problem
    except ValueError:  # the stream itself is closed
        return None
    return None


def tell(text: str) -> None:
    """Print the result of a command; exit with code 0 if the reader closed the pipe, with code 1 on other errors."""
    problem = say(text)
    if isinstance(problem, BrokenPipeError):  # for example `| head`
        sys.exit(0)
    if problem:
        say(f"fedkd_mpi: cannot write to stdout: {problem.strerror}", error=True)
        sys.exit(1)


class _Paper(io.StringIO):
    """A text buffer with the encoding of stdout, from which rich chooses its characters."""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(sys.stdout, "encoding", None) or "utf-8"


def drawn(table: Any, width: int) -> str:
    """Return a rich table as text of at most `width` columns; rich's `capture` would also write to stdout."""
    from rich.console import Console

    paper = _Paper()
    Console(file=paper, width=width, force_terminal=False).print(table)
    return paper.getvalue().rstrip()


class Lenient(io.TextIOBase):
    """A stream for libraries that print by themselves, such as rich; text that cannot be written is dropped.

    It is stderr if no stream is given.
    """

    def __init__(self, stream: TextIO | None = None):
        super().__init__()
        self._given = stream

    @property
    def _stream(self) -> Any:
        if self._given:
            return self._given
        # While a live line is shown, rich replaces sys.stderr and keeps the stream itself under this name.
        return getattr(sys.stderr, "rich_proxied_file", sys.stderr)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding of the stream."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        """Write to the stream if possible."""
        if self._stream is not None:
            with suppress(OSError, ValueError):
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream if possible."""
        if self._stream is not None:
            with suppress(OSError, ValueError):
                self._stream.flush()

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        return self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        """Return the file descriptor of the stream."""
        return self._given.fileno() if self._given else 2


def open_standard_streams() -> None:
    """Open the null device for those of the descriptors 0 to 2 that are closed.

    Otherwise the next opened file, such as the log, would get the number, and output of C libraries would be written
    into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number


def flush() -> None:
    """Flush stdout and stderr if possible, so that the interpreter's own flush at exit does not report errors."""
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        _flush(stream)


def _flush(stream: Any) -> None:
    if stream is None:
        return
    try:
        stream.flush()
    except ValueError:
        return
    except OSError:
        with suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)
            stream.flush()


atexit.register(flush)
