"""The two kinds of errors: UserError, which the user can correct (exit code 2), and RunFault (exit code 1)."""

from __future__ import annotations

import traceback
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePath
from typing import Any

# Control characters (Cc) and lone surrogates (Cs) can control terminals or break the output. Line and paragraph
# separators (Zl, Zp) end lines. Some format characters (Cf) reverse the direction of text.
_HIDDEN = {"Cc", "Cs", "Zl", "Zp", "Cf"}


class UserError(Exception):
    """Invalid usage, configuration or data: one line that names the key, file or client and a remedy; exit code 2.

    Control characters in the message are escaped, because it may quote a file from outside.
    """

    def __init__(self, message: str):
        super().__init__(plain(message))


class RunFault(Exception):
    """A fault during a run, with its location; exit code 1.

    `round` (counted from 0, as in the log), `client` and `layer` are None if they do not apply.
    """

    def __init__(self, message: str, *, round: int | None = None, client: int | None = None, layer: str | None = None):
        super().__init__(message)
        self.round, self.client, self.layer = round, client, layer

    def location(self) -> str:
        """Return the known parts of the location, e.g. 'round 3, client 5, layer fc.weight'; rounds count from 1."""
        number = None if self.round is None else self.round + 1
        parts = (("round", number), ("client", self.client), ("layer", self.layer))
        return ", ".join(f"{name} {value}" for name, value in parts if value is not None)


LONGEST_VALUE, LONGEST_PATH, LONGEST_LINE = 80, 400, 600  # characters of a message's part


def shown(value: Any, longest: int | None = None) -> str:
    """Return a value for a message: one line of printable text, cut after about `longest` characters.

    By default a path, or a text with a slash, may be LONGEST_PATH long: a user looks for the whole of it.
    """
    if longest is None:
        is_path = isinstance(value, PurePath) or (isinstance(value, str) and "/" in value)
        longest = LONGEST_PATH if is_path else LONGEST_VALUE
    text = value if isinstance(value, str) else str(value) if isinstance(value, PurePath) else repr(value)
    if not text.isprintable():
        text = repr(text)[1:-1]
    return text if len(text) <= longest else f"{text[: longest - 20]}... ({len(text)} characters)"


def plain(text: str, longest: int | None = None) -> str:
    r"""Return a text as one line without control characters: escape sequences become readable, as \x1b[...

    A text of more than `longest` characters is cut and ends with an ellipsis.
    """
    if longest is not None and len(text) > longest:
        text = text[: longest - 1] + "…"
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escape(mark) if unicodedata.category(mark) in _HIDDEN else mark for mark in text)


def one_line(error: BaseException) -> str:
    """Return type, text and place of an exception: 'ValueError: no such thing (mine.py, line 7)'."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({PurePath(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {shown(str(error), LONGEST_LINE)}{place}"


@contextmanager
def located(*, round: int, client: int | None = None) -> Iterator[None]:
    """Convert exceptions inside the block to a RunFault with round and client; a programming error keeps its trace."""
    try:
        yield
    except RunFault as fault:
        fault.round = round if fault.round is None else fault.round
        fault.client = client if fault.client is None else fault.client
        raise
    except UserError as error:
        raise RunFault(str(error), round=round, client=client) from error
    except Exception as error:
        trace = "".join(traceback.format_exception(error)).rstrip()
        raise RunFault(trace, round=round, client=client) from error


def _escape(mark: str) -> str:
    return mark.encode("unicode_escape", "surrogatepass").decode() if ord(mark) < 0x100 else f"\\u{ord(mark):04x}"
