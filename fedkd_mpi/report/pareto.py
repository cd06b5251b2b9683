"""Score against bytes: the Pareto front with 95 % intervals, and scores at equal bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fedkd_mpi.report import canvas
from fedkd_mpi.report.baseline import LEVEL, interval
from fedkd_mpi.report.names import Name
from fedkd_mpi.report.runs import SCORES, Run, Target
from fedkd_mpi.report.sheets import Sheet
from fedkd_mpi.report.tables import Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHARES = (0.25, 0.5, 1.0)  # of the smallest bytes of any run: the budgets of the table


def at_bytes(run: Run, score: str, budget: float) -> float:
    """Return a score at a number of bytes per client, linear between the evaluated rounds; NaN outside of them."""
    values = run.score(score)
    known = np.flatnonzero(np.isfinite(values))
    sent = run.total_bytes[known] / (run.clients or np.inf)
    if not len(known) or not sent[0] <= budget <= sent[-1] or not budget:
        return math.nan
    return float(np.interp(budget, sent, values[known]))


def smallest(groups: Sequence[Sequence[Run]], score: str) -> float:
    """Return the bytes per client that every run with bytes has reached with a score; NaN if there is none."""
    reached = []
    for run in (run for group in groups for run in group):
        known = np.flatnonzero(np.isfinite(run.score(score)))
        if len(known) and run.clients and run.total_bytes[known[-1]]:
            reached.append(run.total_bytes[known[-1]] / run.clients)
    return float(min(reached)) if reached else math.nan


def sheet(report: Report, form: str = "table") -> Sheet | None:
    """Return the table of scores at equal bytes, or None if fewer than two runs can be compared."""
    score = _score(report.groups, report.target)
    least = smallest(report.groups, score)
    sending = [group for group in report.groups if any(len(run.total_bytes) and run.total_bytes[-1] for run in group)]
    if len(sending) < 2 or math.isnan(least) or len({group[0].metric for group in sending}) > 1:
        return None
    budgets = [share * least for share in SHARES]
    unit, size = canvas.scaled(budgets, "bytes")
    columns = [
        (
            f"at {budget / size:.3g} {unit}\nper client",
            "score",
            [[at_bytes(run, score, budget) for run in group] for group in report.groups],
        )
        for budget in budgets
    ]
    note = (
        f"{SCORES[score]}, linear between evaluated rounds; the last column: where the run with the fewest bytes ends;"
        " -: before the first evaluation, or nothing is exchanged."
    )
    return report.measured(f"Score at equal bytes ({report.groups[0][0].metric})", columns, form, note)


def front(sent: Sequence[float], values: Sequence[float], less_is_better: bool) -> list[int]:
    """Return the indices of the points that no other beats in both bytes and score, from few to many bytes."""
    sign = -1.0 if less_is_better else 1.0
    kept: list[int] = []
    for index in sorted(range(len(sent)), key=lambda index: (sent[index], -sign * values[index])):
        if not kept or sign * values[index] > sign * values[kept[-1]]:
            kept.append(index)
    return kept


def draw(
    groups: Sequence[Sequence[Run]], names: Sequence[Name], styles: Sequence[Any], target: Target
) -> Figure | None:
    """Return the plot of last scores over bytes per client and of scores at equal bytes, or None without any score."""
    from matplotlib.figure import Figure

    score = _score(groups, target)
    points = [(index, *_point(group, score)) for index, group in enumerate(groups)]
    points = [point for point in points if not math.isnan(point[1][0]) and not math.isnan(point[2][0])]
    if not points:
        return None
    less, heading = groups[0][0].less_is_better, canvas.metric_title(groups[0][0].metric, groups[0][0].less_is_better)
    unit, size = canvas.scaled([sent[0] for _, sent, _ in points], "bytes")
    figure = Figure(figsize=(9.5, max(3.8, 1.2 + 0.19 * len(points))))
    over, equal = figure.subplots(1, 2, width_ratios=(3, 2))
    best = front([sent[0] for _, sent, _ in points], [value[0] for _, _, value in points], less)
    handles = []
    for index, sent, value in points:
        colour, _, marker = styles[index]
        bars = {"xerr": _half(sent) / size, "yerr": _half(value)}
        over.errorbar(sent[0] / size, value[0], **bars, color=colour, linewidth=0.9, capsize=2)
        handles += over.plot(sent[0] / size, value[0], marker, color=colour, markersize=5)
    line = [points[at] for at in best]
    over.step(
        [sent[0] / size for _, sent, _ in line], [v[0] for _, _, v in line], where="post", color="0.4", zorder=0.5
    )
    for index, sent, value in line:
        over.annotate(
            canvas.label(names[index].id, 24),
            (sent[0] / size, value[0]),
            xytext=(3, 5),
            textcoords="offset points",
            fontsize=7,
        )
    canvas.logarithmic(over.xaxis, [sent[0] / size for _, sent, _ in points], 5)
    over.margins(x=0.12, y=0.12)
    over.set(
        xlabel=f"bytes per client, whole run: up, down, catch-up ({unit})",
        ylabel=f"{heading}\n{SCORES[score]}",
        title="Last score over bytes; line: Pareto front",
    )
    widest = _at_equal_bytes(equal, [(groups[i], names[i], styles[i]) for i, _, _ in points], score, heading)
    bars_text = f"; bars: {100 * LEVEL:g} % intervals over seeds" if any(len(group) > 1 for group in groups) else ""
    below = canvas.legend(figure, handles, [canvas.label(names[index].label(), 200) for index, _, _ in points])
    above = canvas.title(figure, f"Score and bytes{bars_text}")
    canvas.arrange(figure, left=1.05, above=above + 0.3, below=below + 0.5, across=widest + 0.25)
    return figure


def _at_equal_bytes(axes: Any, chosen: Sequence[tuple[Any, Name, Any]], score: str, heading: str) -> float:
    """Draw the scores at equal bytes; returns the width of the names beside the axis in inches."""
    least = smallest([group for group, _, _ in chosen], score)
    unit, factor = canvas.scaled([least], "bytes")
    for row, (group, _, (colour, _, marker)) in enumerate(chosen):
        value = interval([at_bytes(run, score, least) for run in group])
        if not math.isnan(value[0]):
            axes.errorbar(value[0], row, xerr=_half(value), fmt=marker, color=colour, markersize=5, capsize=2)
    ids = [canvas.label(known.id, 40) for _, known, _ in chosen]
    size = canvas.SMALL if len(chosen) <= 12 else canvas.SMALL - 1
    axes.set_yticks(range(len(chosen)), ids, fontsize=size)
    axes.locator_params(axis="x", nbins=5)
    axes.set(ylim=(len(chosen) - 0.4, -0.6), xlabel=f"{heading}, interpolated")
    axes.set_title(f"At equal bytes: {least / factor:.3g} {unit} per client")
    return max(canvas.inches(text, size) for text in ids)


def _score(groups: Sequence[Sequence[Run]], target: Target) -> str:
    """Return the target's score, or the first that runs have."""
    order = [target.score, *SCORES]
    return next((each for each in order if any(np.isfinite(g[0].score(each)).any() for g in groups)), target.score)


def _point(group: Sequence[Run], score: str) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return bytes per client and last score of a group: each mean and half the width of its interval."""
    sent, values = [], []
    for run in group:
        known = np.flatnonzero(np.isfinite(run.score(score)))
        if len(known) and run.clients and run.total_bytes[-1]:
            sent.append(float(run.total_bytes[-1] / run.clients))
            values.append(float(run.score(score)[known[-1]]))
    return interval(sent), interval(values)


def _half(value: tuple[float, float]) -> float:
    return 0.0 if math.isnan(value[1]) else value[1]
