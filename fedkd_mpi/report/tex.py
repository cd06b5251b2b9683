"""Any text as LaTeX that pdfLaTeX and LuaLaTeX compile without packages, whatever a log contains."""

from __future__ import annotations

import re
import unicodedata

WIDEST = 20  # characters of a line of a label
PAGE = 75  # characters of a row in \\small that fit the page of an article
_GREEK = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi - pi rho varsigma sigma".split()  # noqa: SIM905
_GREEK += ["tau", "upsilon", "phi", "chi", "psi", "omega"]
_CAPITALS = {"Γ", "Δ", "Θ", "Λ", "Ξ", "Π", "Σ", "Φ", "Ψ", "Ω"}  # the others are Latin letters
_MATHS = {chr(0x3B1 + at): name for at, name in enumerate(_GREEK) if name != "-"}
_MATHS |= {mark: _MATHS[mark.lower()].capitalize() for mark in _CAPITALS}
_MATHS |= {"±": "pm", "µ": "mu", "≥": "ge", "≤": "le", "≠": "ne", "≈": "approx", "→": "to", "←": "gets"}
_MATHS |= {
    "\u00d7": "times",
    "·": "cdot",
    "∞": "infty",
    "∈": "in",
    "\u2212": "",
    "<": "",
    ">": "",
    "|": "",
}  # "": a sign itself
_ACCENTS = dict(
    zip("\u0300\u0301\u0302\u0303\u0304\u0306\u0307\u0308\u030a\u030b\u030c\u0327", "`'^~=u.\"rHvc", strict=True)
)
_TEXT = {"\\": "textbackslash", "~": "textasciitilde", "^": "textasciicircum", "…": "ldots", "§": "S", "¶": "P"}
_TEXT |= {"ß": "ss", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "ø": "o", "Ø": "O", "ł": "l", "Ł": "L", "\u0131": "i"}
_TEXT |= {"£": "pounds", "©": "copyright", "†": "dag", "‡": "ddag"}
_WRITTEN = {mark: f"\\{mark}" for mark in "&%$#_{}"} | {"\n": " ", "\xa0": "~", "\u2013": "--", "—": "---"}
_WRITTEN |= {"“": "``", "”": "''", "\u2018": "`", "\u2019": "'", "¿": "?`", "¡": "!`"}
_WRITTEN |= {"[": "{[}", "*": "{*}"}  # after the end of a row these would be its argument
_WRITTEN |= {mark: rf"\{name}{{}}" for mark, name in _TEXT.items()}
_WRITTEN |= {
    mark: f"$\\{name}$" if name else f"${'-' if ord(mark) == 0x2212 else mark}$" for mark, name in _MATHS.items()
}

# Characters of other scripts, where the engine knows Unicode; a font that has them is the document's.
DEFINITION = r"\providecommand{\uchar}[2]{\ifdefined\Umathcode#1\else#2\fi}"


def escaped(text: str) -> str:
    """Return a text as LaTeX; characters of other scripts need DEFINITION, and are U+6A21 in pdfLaTeX."""
    made, before = [], ""
    for mark in unicodedata.normalize("NFC", text):
        if (mark in "-'`," and mark == before) or (mark == "`" and before in "?!" and before):
            made.append("{}")  # two of them would be another character
        made.append(_character(mark))
        before = mark
    return "".join(made)


def number(text: str) -> str:
    """Return numbers of a cell with the signs of mathematics instead of hyphens."""
    return re.sub(r"(?<![\w.])([-+])(?=\d)", r"$\1$", escaped(text))


def breakable(text: str) -> str:
    """Return a text that may be broken after signs, and after 16 characters without one."""
    parts = re.findall(r"[^\s_/.,=:;-]{1,16}[_/.,=:;-]?|\s|.", text)
    made = "".join(escaped(part) + ("" if part.isspace() else r"\allowbreak{}") for part in parts)
    return made.replace(r"\allowbreak{} ", " ").replace(r"\uchar", r"\hskip0pt\uchar")


def wrapped(text: str) -> str:
    """Return a text for a column of lines."""
    return rf"\rightskip=0pt plus 1fil{{}}{breakable(text)}"  # \raggedright would change the end of a row


def head(header: str, left: bool) -> str:
    """Return a header whose lines are stacked, because one long line would widen its column."""
    lines = [escaped(line) for line in header.split("\n")]
    stack = r" \\ ".join(lines)
    return stack if len(lines) == 1 else rf"\shortstack[{'l' if left else 'r'}]{{{stack}}}"


def _character(mark: str) -> str:
    if mark in _WRITTEN:
        return _WRITTEN[mark]
    if mark.isascii():
        return mark
    base, accent = (*unicodedata.normalize("NFD", mark), "")[:2]
    if accent in _ACCENTS and base.isascii() and len(unicodedata.normalize("NFD", mark)) == 2:
        return rf"\{_ACCENTS[accent]}{{{base}}}"
    return rf"\uchar{{{mark}}}{{U+{ord(mark):04X}}}"
