"""--html: tables and plots in one self-contained file."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from fedkd_mpi import __version__
from fedkd_mpi.errors import UserError
from fedkd_mpi.report import canvas, sheets

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1250px; padding: 0 1em }
body { color: #1a1a1a; background: #fff }
h1 { font-size: 1.6em } h2 { font-size: 1.15em; margin-top: 2em }
table { border-collapse: collapse; font-size: 13px } th, td { padding: .3em .7em; white-space: nowrap }
th { border-bottom: 2px solid #444; vertical-align: bottom; white-space: normal } td { border-bottom: 1px solid #ddd }
.label { text-align: left } .number { text-align: right; font-variant-numeric: tabular-nums }
.wide { overflow-x: auto } p { color: #555; font-size: 13px } img { max-width: 100%; height: auto }
.problem { color: #a33300 } figure { margin: 1.5em 0 }
"""


def write(path: Path, made: Sequence[sheets.Sheet], figures: dict[str, Figure], problems: Sequence[str]) -> None:
    """Write the page; raises UserError if the file cannot be written."""
    title = f"fedkd_mpi {__version__}: report of {datetime.now():%Y-%m-%d %H:%M}"
    complaints = "".join(f"<p class='problem'>{html.escape(problem)}</p>" for problem in problems)
    tables = "\n".join(sheets.page(sheet) for sheet in made)
    pictures = "\n".join(_picture(name, canvas.render(figure, "svg")) for name, figure in figures.items())
    text = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><link rel="icon" href="data:,"><style>{STYLE}</style></head>
<body><h1>{title}</h1>{complaints}
{tables}
{pictures}
</body></html>
"""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write --html {path}: {error.strerror}") from None


def _picture(name: str, svg: bytes) -> str:
    # As images instead of inline, because the ids that matplotlib uses in several SVGs would collide.
    data = base64.b64encode(svg).decode()
    alt = html.escape(name.replace("-", " "))
    return f"<figure><h2>{alt}</h2><img alt='{alt}' src='data:image/svg+xml;base64,{data}'></figure>"
