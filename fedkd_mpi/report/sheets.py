"""A table of texts and its renderings: plain text, Markdown, LaTeX, HTML."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedkd_mpi.report import tex

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
    columns = [_tex_column(sheet, column) for column in range(len(sheet.headers))]
    heads = [tex.head(header, sheet.is_text(column)) for column, header in enumerate(sheet.headers)]
    rows = [[_tex_cell(cell, kind) for cell, kind in zip(row, columns, strict=True)] for row in sheet.rows]
    lines = [" & ".join(cells) + r" \\" for cells in [heads, *rows]]
    caption = tex.breakable(f"{sheet.title}. {sheet.note}" if sheet.note else sheet.title)
    name = re.sub(r"[^a-z0-9]+", "-", sheet.title.lower()).strip("-") or "runs"
    used = any(r"\uchar" in text for text in (caption, *lines))
    frame = [
        r"\begin{table}  % needs \usepackage{booktabs}",
        *([tex.DEFINITION] if used else []),
        r"\centering",
        r"\setlength{\belowcaptionskip}{4pt}",
        rf"\caption{{{caption}}}",
        rf"\label{{tab:{name}}}",
        r"\small" if _characters(sheet) <= tex.PAGE else r"\footnotesize",
        r"\setlength{\tabcolsep}{3pt}",
        rf"\begin{{tabular}}{{{''.join(columns)}}}",
        r"\toprule",
        lines[0],
        r"\midrule",
        *lines[1:],
        r"\bottomrule",
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


def csv_cell(value: object) -> object:
    """Return a value for a CSV file such that a spreadsheet does not interpret a text as a formula."""
    # A single dash marks a missing value and is not a formula.
    if isinstance(value, str) and value.startswith(FORMULA) and value != "-":
        return f"'{value}"
    return value


def _tex_column(sheet: Sheet, column: int) -> str:
    """Return the kind of a column: numbers to the right, texts to the left, long texts in lines of tex.WIDEST."""
    if not sheet.is_text(column):
        return "r"
    longest = max((len(row[column]) for row in sheet.rows), default=0)
    return "l" if longest <= tex.WIDEST else f"p{{{tex.WIDEST / 2:g}em}}"


def _characters(sheet: Sheet) -> int:
    """Return about how many characters a row has in print, with those of the gaps."""
    widths = [
        max([*map(len, head.split("\n")), *(len(row[at]) for row in sheet.rows)])
        for at, head in enumerate(sheet.headers)
    ]
    return sum(min(width, tex.WIDEST if sheet.is_text(at) else width) + 1 for at, width in enumerate(widths))


def _tex_cell(cell: str, kind: str) -> str:
    return {"r": tex.number, "l": tex.escaped}.get(kind, tex.wrapped)(cell)


def _mark(cell: str) -> str:
    """Return a text with all Markdown syntax escaped, except underscores within words."""
    return re.sub(r"[\\`*\[\]<>|&#~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\\g<0>", cell)


def _pad(cell: str, width: int, left: bool) -> str:
    return cell.ljust(width) if left else cell.rjust(width)
