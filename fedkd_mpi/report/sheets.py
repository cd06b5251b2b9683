"""A table of texts and its renderings: plain text, Markdown, LaTeX, HTML."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # first characters of a spreadsheet's formulas


@dataclass(frozen=True)
class Sheet:
    """A titled table; the first `labels` columns and those in `left` are left-aligned text, the others numbers."""

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    labels: int = 1
    note: str = ""
    left: frozenset[int] = frozenset()

    def is_text(self, column: int) -> bool:
        """Whether a column is left-aligned text."""
        return column < self.labels or column in self.left


def text(sheet: Sheet) -> str:
    """Return the sheet as aligned columns of plain text; newlines in headers start a new line."""
    heads = [header.split("\n") for header in sheet.headers]
    height = max(len(lines) for lines in heads)
    heads = [[""] * (height - len(lines)) + lines for lines in heads]
    table = [list(line) for line in zip(*heads, strict=True)] + [list(row) for row in sheet.rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(sheet.headers))]
    lines = [
        "  ".join(
            _pad(cell, width, sheet.is_text(column))
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in table
    ]
    lines.insert(height, "  ".join("-" * width for width in widths))
    return "\n".join([sheet.title, *(line.rstrip() for line in lines), *([sheet.note] if sheet.note else [])])


def markdown(sheet: Sheet) -> str:
    """Return the sheet as a GitHub-flavoured Markdown table under a bold title."""
    marks = [":--" if sheet.is_text(column) else "--:" for column in range(len(sheet.headers))]
    rows = [
        [_mark(header.replace("\n", " ")) for header in sheet.headers],
        marks,
        *([_mark(cell) for cell in row] for row in sheet.rows),
    ]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([f"**{_mark(sheet.title)}**", "", *lines, *(["", _mark(sheet.note)] if sheet.note else [])])


def latex(sheet: Sheet) -> str:
    r"""Return the sheet as a LaTeX table with caption and label; it needs \usepackage{booktabs}."""
    columns = "".join("l" if sheet.is_text(column) else "r" for column in range(len(sheet.headers)))
    heads = " & ".join(_tex_head(header, sheet.is_text(column)) for column, header in enumerate(sheet.headers))
    rows = [
        " & ".join(_tex(cell) if sheet.is_text(column) else _tex_number(cell) for column, cell in enumerate(row))
        + r" \\"
        for row in sheet.rows
    ]
    body = [r"\toprule", heads + r" \\", r"\midrule", *rows, r"\bottomrule"]
    caption = _tex(f"{sheet.title}. {sheet.note}" if sheet.note else sheet.title)
    name = re.sub(r"[^a-z0-9]+", "-", sheet.title.lower()).strip("-") or "runs"
    frame = [
        r"\begin{table}  % needs \usepackage{booktabs}",
        r"\centering",
        rf"\caption{{{caption}}}",
        rf"\label{{tab:{name}}}",
        rf"\begin{{tabular}}{{{columns}}}",
        *body,
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(frame)


def page(sheet: Sheet) -> str:
    """Return the sheet as an HTML table under its title."""
    kinds = ["label" if sheet.is_text(column) else "number" for column in range(len(sheet.headers))]

    def row(tag: str, cells: Sequence[str]) -> str:
        marks = zip(kinds, cells, strict=True)
        return (
            "<tr>" + "".join(f'<{tag} class="{kind}">{html.escape(cell)}</{tag[:2]}>' for kind, cell in marks) + "</tr>"
        )

    body = "\n".join(row("td", cells) for cells in sheet.rows)
    note = f"<p>{html.escape(sheet.note)}</p>" if sheet.note else ""
    head = row("th scope='col'", [header.replace("\n", " ") for header in sheet.headers])
    title = html.escape(sheet.title)
    table = f"<table><thead>{head}</thead>\n<tbody>{body}</tbody></table>"
    # A region that scrolls must be reached by keyboard.
    region = f"<div class='wide' tabindex='0' role='region' aria-label='{title}'>{table}</div>"
    return f"<h3>{title}</h3>\n{region}{note}"


RENDERERS: dict[str, Callable[[Sheet], str]] = {"table": text, "markdown": markdown, "latex": latex}

_TEX = {
    "\\": r"\textbackslash{}",
    "±": r"$\pm$",
    "\n": " ",
    "µ": r"\textmu{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
} | {mark: f"\\{mark}" for mark in "&%$#_{}"}


def csv_cell(value: object) -> object:
    """Return a value for a CSV file such that a spreadsheet does not interpret a text as a formula."""
    # A single dash marks a missing value and is not a formula.
    if isinstance(value, str) and value.startswith(FORMULA) and value != "-":
        return f"'{value}"
    return value


def _tex(cell: str) -> str:
    return "".join(_TEX.get(mark, mark) for mark in cell)


def _tex_number(cell: str) -> str:
    """Return numbers of a cell with the signs of mathematics instead of hyphens."""
    return re.sub(r"(?<![\w.])([-+])(?=\d)", r"$\1$", _tex(cell))


def _tex_head(header: str, left: bool) -> str:
    """Return a header whose lines are stacked, because one long line would widen its column."""
    lines = [_tex(line) for line in header.split("\n")]
    stack = r" \\ ".join(lines)
    return stack if len(lines) == 1 else rf"\shortstack[{'l' if left else 'r'}]{{{stack}}}"


def _mark(cell: str) -> str:
    """Return a text with all Markdown syntax escaped, except underscores within words."""
    return re.sub(r"[\\`*\[\]<>|&#~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\\g<0>", cell)


def _pad(cell: str, width: int, left: bool) -> str:
    return cell.ljust(width) if left else cell.rjust(width)
