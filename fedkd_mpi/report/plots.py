"""The figures of all runs together: scores over bytes and rounds, the Pareto front, scores at equal bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fedkd_mpi.report import canvas, pareto
from fedkd_mpi.report.names import Name, name
from fedkd_mpi.report.runs import SCORES, Run, Target

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FEW, MANY = 4, 12  # runs up to which bands, and markers along a line, can be told apart
Group = Sequence[Run]


def overview(groups: Sequence[Group], target: Target) -> dict[str, Figure]:
    """Return the figures of all runs by file name: `scores` and `pareto`, one of each per metric.

    Raises UserError if matplotlib is not installed.
    """
    names = name(groups)
    metrics = list(dict.fromkeys(group[0].metric for group in groups))
    figures = {}
    with canvas.style():
        for number, metric in enumerate(metrics):
            # Every run keeps its look in all figures, so the others of another metric still take theirs.
            chosen = [each for each in zip(groups, names, canvas.looks(), strict=False) if each[0][0].metric == metric]
            ending = "" if number == 0 else f"-{''.join(mark if mark.isalnum() else '-' for mark in metric)[:40]}"
            while f"scores{ending}" in figures:
                ending += "-"
            sets, known, looks = (list(part) for part in zip(*chosen, strict=True))
            figures[f"scores{ending}"] = scores(sets, known, looks, target)
            if (front := pareto.draw(sets, known, looks, target)) is not None:
                figures[f"pareto{ending}"] = front
    return figures


def scores(groups: Sequence[Group], names: Sequence[Name], styles: Sequence[Any], target: Target) -> Figure:
    """Return the plot of every score over cumulative bytes per client and over rounds: mean and range over seeds."""
    from matplotlib.figure import Figure

    used = _used(groups)
    curves = [{each: _curve(group, each) for each in used} for group in groups]
    sent = [curve[1].max() for by_score in curves for curve in by_score.values() if curve is not None]
    unit, size = canvas.scaled(sent, "bytes")
    height = 2.6 if len(groups) <= MANY else 4.0
    figure = Figure(figsize=(9.5, 1.0 + height * len(used)))
    rows = figure.subplots(len(used), 2, squeeze=False, sharex="col", sharey="row")
    handles: dict[str, Any] = {}
    for index, (known, by_score, style) in enumerate(zip(names, curves, styles, strict=True)):
        colour, line, marker = style
        twin = next((other for other in range(index) if _equal(curves[other], by_score)), None)
        # A line that lies on another shows it through its gaps.
        look = {"color": colour, "linestyle": line if twin is None else (0, (4, 5)), "marker": marker, "markersize": 4}
        look["linewidth"] = 1.4 if len(groups) <= MANY else 1.0
        for each, (over_bytes, over_rounds) in zip(used, rows, strict=True):
            if (curve := by_score[each]) is None:
                continue
            at, megabytes, middle, low, high = curve[0], curve[1] / size, *curve[2:]
            step = max(1, len(at) // (8 if len(groups) <= MANY else 3))
            look["markevery"] = (index % step, step) if len(at) > 1 else None
            for axes, x in ((over_bytes, megabytes), (over_rounds, at)):
                if axes is over_bytes and not megabytes.any():
                    continue
                (handle,) = axes.plot(x, middle, **look)
                if high is not low and len(groups) <= FEW:
                    axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
                elif len(at) == 1 and (high > low).any():
                    axes.vlines(x, low, high, color=colour, linewidth=0.8)
            same = "" if twin is None else f", the same scores and bytes as {names[twin].id}"
            handles[canvas.label(f"{known.label()}{same}", 200)] = handle
    worst = groups[0][0].less_is_better
    for each, (over_bytes, over_rounds) in zip(used, rows, strict=True):
        heading = canvas.metric_title(groups[0][0].metric, worst)
        over_bytes.set_ylabel(f"{heading}\n{SCORES[each].replace(', ', chr(10))}")
        for axes in (over_bytes, over_rounds):
            if target.value is not None and each == target.score:
                axes.axhline(target.value, color="0.4", linewidth=0.8)
    left, right = rows[-1]
    firsts = [curve[1].min() for by_score in curves for curve in by_score.values() if curve is not None]
    canvas.logarithmic(left.xaxis, [value / size for value in (*firsts, *sent)])
    left.set_xlabel(f"bytes per client so far: up, down, catch-up ({unit})")
    right.set_xlabel("round")
    canvas.whole(right.xaxis)
    longest = max(len(run.rounds["round"]) for group in groups for run in group)
    right.set_xlim(0.5, max(longest, 1) + 0.5)
    below = canvas.legend(figure, list(handles.values()), list(handles))
    above = canvas.title(figure, _what(groups))
    canvas.arrange(figure, left=1.15, above=above + 0.1, below=below + 0.5, across=0.2, down=0.15)
    return figure


def _used(groups: Sequence[Group]) -> list[str]:
    """Return the scores with a curve in any run; those with single points if there is no curve."""
    for least in (2, 1):
        used = [
            each
            for each in SCORES
            if any(np.isfinite(run.score(each)).sum() >= least for group in groups for run in group)
        ]
        if used:
            return used
    return ["global_student"]


def _what(groups: Sequence[Group]) -> str:
    """Return task and data of the runs, as far as they are the same."""
    parts: list[str] = []
    for keys in (("task",), ("data", "name")):
        found = {canvas.label(group[0].setting(*keys)) for group in groups}
        parts += found if len(found) == 1 else [f"{len(found)} {' '.join(keys)}s"]
    return ", ".join(part for part in parts if part)


def _curve(group: Group, each: str) -> tuple[np.ndarray, ...] | None:
    """Return rounds, bytes per client, and mean, smallest and largest score, where all logs of a group were evaluated.

    Rounds count from 1. For one log, the last three are the same array.
    """
    length = min(len(run.score(each)) for run in group)
    values = np.array([run.score(each)[:length] for run in group])
    known = np.flatnonzero(np.isfinite(values).all(axis=0))
    if not len(known):
        return None
    sent = np.mean([run.total_bytes[known] / (run.clients or np.inf) for run in group], axis=0)
    values, number = values[:, known], group[0].rounds["round"][known] + 1
    if len(group) == 1:
        return number, sent, values[0], values[0], values[0]
    return number, sent, values.mean(axis=0), values.min(axis=0), values.max(axis=0)


def _equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two runs have the same curves, so that one would hide the other."""
    pairs = [(one[each], other[each]) for each in one]
    return all(
        (a is None) == (b is None)
        and (a is None or all(np.array_equal(x, y) for x, y in zip(a[:3], b[:3], strict=True)))
        for a, b in pairs
    ) and any(a is not None for a, _ in pairs)
