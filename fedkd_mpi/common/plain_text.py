"""Text that came from elsewhere, made harmless before a person or a program is shown it."""

from __future__ import annotations

import unicodedata

# Control characters (Cc) and lone surrogates (Cs) drive terminals or break the output; line and paragraph separators
# (Zl, Zp) end lines; of the format characters (Cf) some turn text around.
_HIDDEN = {"Cc", "Cs", "Zl", "Zp", "Cf"}
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def plain(text: str, longest: int | None = None) -> str:
    r"""Return a text as one line in which nothing acts: escape sequences become \x1b[... and can be read.

    A text of more than `longest` characters ends with an ellipsis.
    """
    if longest is not None and len(text) > longest:
        text = text[: longest - 1] + "…"
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escape(mark) if unicodedata.category(mark) in _HIDDEN else mark for mark in text)


def cell(value: object) -> object:
    """Return a value of a csv file such that a spreadsheet does not take a text for a formula."""
    # A dash alone says that there is nothing, and is no formula.
    if isinstance(value, str) and value.startswith(_FORMULA) and value != "-":
        return f"'{value}"
    return value


def _escape(mark: str) -> str:
    return mark.encode("unicode_escape", "surrogatepass").decode() if ord(mark) < 0x100 else f"\\u{ord(mark):04x}"
