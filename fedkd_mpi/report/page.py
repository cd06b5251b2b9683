"""--html: one self-contained page: tables and figures for all, and charts with controls where scripts run."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from string import Template

from fedkd_mpi import __version__
from fedkd_mpi.errors import UserError
from fedkd_mpi.report import page_data, sheets
from fedkd_mpi.report.runs import Run, Target

SECTIONS = {"curves": "Curves", "tables": "Tables", "run": "One run", "difference": "Difference of two runs"}
SCRIPTS = ("elements.js", "run.js", "page.js")  # in this order: each uses those before it
SCRIPTED = ("run", "difference")  # sections that are empty without scripts


def write(
    path: Path,
    groups: Sequence[Sequence[Run]],
    target: Target,
    made: Sequence[sheets.Sheet],
    figures: Mapping[str, bytes],
    problems: Sequence[str],
) -> None:
    """Write the page of groups of runs, their tables and figures, which are SVGs by name.

    Raises UserError if plotly is not installed or the file cannot be written.
    """
    library, scripts = _plotly(), [_own(name) for name in SCRIPTS]
    count, logs = len(groups), sum(map(len, groups))
    title = f"fedkd_mpi {__version__}: report of {datetime.now():%Y-%m-%d %H:%M}"
    text = Template(_own("page.html")).substitute(
        title=title,
        summary=f"{logs} log{'s' * (logs != 1)}, {count} configuration{'s' * (count != 1)}; seeds of one are together.",
        # The only scripts that may run; text from a log could not, even if it were taken for one.
        hashes=" ".join(_hash(each) for each in (*scripts, library)),
        style=_own("page.css"),
        problems="".join(f"<p class='problem'>{html.escape(problem)}</p>" for problem in problems),
        contents="\n".join(
            f"<li{' class=scripted hidden' * (key in SCRIPTED)}><a href='#{key}'>{name}</a></li>"
            for key, name in SECTIONS.items()
        ),
        figures="\n".join(_picture(name, svg) for name, svg in figures.items()),
        tables="\n".join(sheets.page(sheet) for sheet in made),
        data=page_data.script_json(page_data.build(groups, target)),
        plotly=base64.b64encode(gzip.compress(library.encode(), 6, mtime=0)).decode(),
        scripts="\n".join(f"<script>{script}</script>" for script in scripts),
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")  # other line ends would change the hashes
    except OSError as error:
        raise UserError(f"cannot write --html {path}: {error.strerror}") from None


def require(path: Path) -> None:
    """Raise UserError if plotly is not installed or the path is no place for a file, before anything is drawn."""
    _plotly()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write --html {path}: {error.strerror}") from None
    problem = "Is a directory" if path.is_dir() else "Permission denied" if not os.access(path.parent, os.W_OK) else ""
    if problem:
        raise UserError(f"cannot write --html {path}: {problem}")


def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise UserError("--html needs plotly: pip install 'fedkd-mpi[report]'") from None
    return str(get_plotlyjs())


def _own(name: str) -> str:
    return (files("fedkd_mpi.report") / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _picture(name: str, svg: bytes) -> str:
    # As images instead of inline, because the ids that matplotlib uses in several SVGs would collide.
    data = base64.b64encode(svg).decode()
    alt = html.escape(name.replace("-", " "))
    return f"<figure><h3>{alt}</h3><img alt='{alt}' src='data:image/svg+xml;base64,{data}'></figure>"
