"""The plots of the report: colours for the colour-blind, a unit on every axis, one legend per figure."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedkd_mpi.errors import UserError
from fedkd_mpi.report import details, names
from fedkd_mpi.report.runs import SCORES, Run, Target

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The palette of Okabe and Ito without yellow (too pale on white); line styles and markers distinguish more runs.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
LINES, MARKERS = ("-", "--", ":", "-."), ("o", "s", "^", "D", "v", "P", "X", "*")
STYLE: dict[Any, Any] = {  # matplotlib's types list every key, and take no text for one
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 130,
    "svg.hashsalt": "fedkd_mpi",  # the same log gives the same file
}


def draw(groups: Sequence[Sequence[Run]], target: Target) -> dict[str, Figure]:
    """Return the figures by file name: `scores` of all runs, and the detail plots of the first run of each group.

    Raises UserError if matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise UserError("--plot and --html need matplotlib: pip install 'fedkd-mpi[report]'") from None
    with matplotlib.rc_context(STYLE):
        figures = {"scores": scores(groups, target)}
        for known, group in zip(names.name(groups), groups, strict=True):
            figures |= {f"{known.id}-{part}": figure for part, figure in details.draw(group[0])}
    return figures


def save(figures: dict[str, Figure], folder: Path) -> list[Path]:
    """Write every figure as PNG and SVG and return the paths; raises UserError if the folder cannot be written."""
    paths = [folder / f"{name}.{kind}" for name in figures for kind in ("png", "svg")]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in paths:
            path.write_bytes(render(figures[path.stem], path.suffix[1:]))
    except OSError as error:
        raise UserError(f"cannot write the plots to {folder}: {error.strerror}") from None
    return paths


def render(figure: Figure, kind: str) -> bytes:
    """Return a figure as the bytes of a png or svg file."""
    import io

    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a box is shown instead
        figure.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()


def scores(groups: Sequence[Sequence[Run]], target: Target) -> Figure:
    """Return the plot of every score over cumulative bytes per client and over rounds: mean and range over seeds."""
    from matplotlib.figure import Figure

    used = [name for name in SCORES if any(np.isfinite(run.score(name)).sum() > 1 for group in groups for run in group)]
    used = used or ["global_student"]
    figure = Figure(figsize=(9.5, 0.8 + 2.7 * len(used)))
    rows = figure.subplots(len(used), 2, squeeze=False, sharex="col", sharey="row")
    styles = zip(cycle(COLOURS), _slowly(LINES, len(COLOURS)), cycle(MARKERS))
    handles: dict[str, Any] = {}
    labels = [details.label(known.label(), 160) for known in names.name(groups)]
    for group, label, (colour, line, marker) in zip(groups, labels, styles, strict=False):
        look = {"color": colour, "linestyle": line, "marker": marker, "markersize": 4, "linewidth": 1.4}
        for name, (over_bytes, over_rounds) in zip(used, rows, strict=True):
            if (curve := _curve(group, name)) is None:
                continue
            at, megabytes, middle, low, high = curve
            look["markevery"] = max(1, len(at) // 8)
            for axes, x in ((over_bytes, megabytes), (over_rounds, at)):
                if axes is over_bytes and not megabytes.any():
                    continue
                (handles[label],) = axes.plot(x, middle, **look)
                if len(group) > 1:
                    axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    for name, (over_bytes, over_rounds) in zip(used, rows, strict=True):
        over_bytes.set_ylabel(f"{details.label(groups[0][0].metric)}\n{SCORES[name].replace(', ', chr(10))}")
        for axes in (over_bytes, over_rounds):
            if target.value is not None and name == target.score:
                axes.axhline(target.value, color="0.4", linewidth=0.8)
    left, right = rows[-1]
    if left.dataLim.x0 > 0 and np.isfinite(left.dataLim.x1):
        left.set_xscale("log")
        left.xaxis.set_major_formatter("{x:g}")
    left.set_xlabel("cumulative bytes per client: up, down, catch-up (MB)")
    right.set_xlabel("rounds")
    details.whole(right.xaxis)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def _curve(group: Sequence[Run], name: str) -> tuple[np.ndarray, ...] | None:
    """Return rounds, MB per client, and mean, smallest and largest score, where all logs of a group were evaluated."""
    length = min(len(run.score(name)) for run in group)
    values = np.array([run.score(name)[:length] for run in group])
    known = np.flatnonzero(np.isfinite(values).all(axis=0))
    if not len(known):
        return None
    megabytes = np.mean([run.total_bytes[known] / (run.clients or np.inf) for run in group], axis=0) / 1e6
    values = values[:, known]
    return known + 1, megabytes, values.mean(axis=0), values.min(axis=0), values.max(axis=0)


def _slowly(values: Sequence[str], times: int) -> Iterator[str]:
    return (value for value in cycle(values) for _ in range(times))
