"""What the package prints; stdout and stderr may be closed, a pipe that nobody reads, or a file on a full disk."""

from __future__ import annotations

import atexit
import io
import os
import sys
from contextlib import suppress
from typing import Any, TextIO


def say(text: str, *, error: bool = False) -> OSError | None:
    """Print a line at once; return why it could not be written, which never ends a run: its result is the log.

    What the stream's encoding lacks is printed as an escape.
    """
    stream: TextIO | None = sys.stderr if error else sys.stdout  # as they are now: rich and pytest replace them
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
    """Print what a command was asked to print: exit with 0 where the reader has gone, with 1 on a full device."""
    problem = say(text)
    if isinstance(problem, BrokenPipeError):  # `| head` has seen enough
        sys.exit(0)
    if problem:
        say(f"fedkd_mpi: cannot write to stdout: {problem.strerror}", error=True)
        sys.exit(1)


class _Paper(io.StringIO):
    """Text that is drawn with the characters stdout has."""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(sys.stdout, "encoding", None) or "utf-8"


def drawn(table: Any, width: int) -> str:
    """Return a table of rich as text; rich's own `capture` writes to stdout too."""
    from rich.console import Console

    paper = _Paper()
    Console(file=paper, width=width, force_terminal=False).print(table)
    return paper.getvalue().rstrip()


class Lenient(io.TextIOBase):
    """stderr for those who print by themselves, as rich does: what cannot be written is dropped."""

    def write(self, text: str) -> int:
        """Write to stderr, if it can be."""
        if sys.stderr is not None:
            with suppress(OSError, ValueError):
                sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush stderr, if it can be."""
        if sys.stderr is not None:
            with suppress(OSError, ValueError):
                sys.stderr.flush()

    def isatty(self) -> bool:
        """Whether stderr is a terminal."""
        return sys.stderr is not None and sys.stderr.isatty()

    def fileno(self) -> int:
        """Return stderr's descriptor."""
        return 2


def open_standard_streams() -> None:
    """Give descriptors 0 to 2 that are closed to the null device: the next file would get their number, the log too.

    What C libraries print would then be written into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number


def flush() -> None:
    """Flush both streams as far as they can be: the interpreter does so after this, and has nothing to complain of."""
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
