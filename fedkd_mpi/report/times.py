"""The figure of one run's time: seconds by phase over rounds, and computing and waiting of every MPI process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fedkd_mpi.costlog.schema import ENCRYPT, PHASES
from fedkd_mpi.report import canvas
from fedkd_mpi.report.runs import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PHASE_COLOURS = ("#0072B2", "#56B4E9", "#D55E00", "#E69F00", "#CC79A7", "#009E73", "#888888", "#8B4513")
PHASE_LINES = ("-", "--", "-", ":", "--", ":", "-.", "--")
POINTS = 100  # of a line: more rounds are averaged


def times(run: Run, *heading: str) -> Figure:
    """Return the plot of seconds by phase over rounds, and of computing and waiting of every MPI process."""
    from matplotlib.figure import Figure

    mpi = run.log["mpi"]
    computed, waited = np.nansum(mpi["seconds_compute"], axis=0), np.nansum(mpi["seconds_wait"], axis=0)
    figure = Figure(figsize=(10.5, 3.4 + 0.06 * min(len(computed), 40)))
    over_rounds, by_rank = figure.subplots(1, 2, width_ratios=(3, 2))
    bins = np.array_split(np.arange(len(run.rounds["round"])), min(POINTS, len(run.rounds["round"])))
    number = [run.rounds["round"][rows].mean() + 1 for rows in bins]
    # Lines instead of a stack, because the phases overlap: the server waits while the clients train.
    looks = zip((*PHASES, ENCRYPT), PHASE_COLOURS, PHASE_LINES, strict=True)
    phases = [*(look for look in looks if look[0] in run.phases), ("total", "black", "-")]
    curves = {phase: np.array([_mean(run.rounds[f"seconds_{phase}"][rows]) for rows in bins]) for phase, *_ in phases}
    unit, size = canvas.scaled(curves["total"], "seconds")
    lines, most = [], len(bins[0])
    for phase, colour, line in phases:
        name = "whole round" if phase == "total" else phase
        look = {"color": colour, "linestyle": line, "marker": "o" if len(bins) == 1 else None, "label": name}
        lines += over_rounds.step(
            number, np.where(curves[phase] > 0, curves[phase], np.nan) / size, where="mid", **look
        )
    # Most phases take a thousandth of the training: on a linear scale they would be one line at 0.
    canvas.logarithmic(over_rounds.yaxis, np.concatenate(list(curves.values())) / size)
    averaged = "" if most == 1 else f", means over {most} rounds"
    over_rounds.set(xlabel="round", ylabel=f"{unit} per round", title=f"Time by phase{averaged}")
    canvas.whole(over_rounds.xaxis)
    unit, size = canvas.scaled(computed + waited, "seconds")
    ranks = np.arange(len(computed))
    bars = by_rank.barh(ranks, computed / size, color="#0072B2", alpha=0.8, label="process computing")
    style = {"color": "#E69F00", "hatch": "//", "edgecolor": "white", "linewidth": 0}
    idle = by_rank.barh(ranks, waited / size, left=computed / size, label="process waiting", **style)
    by_rank.set(xlabel=f"{unit}, whole run", ylabel="MPI rank (0 = server)", title="Time by process")
    by_rank.set_ylim(max(len(ranks) - 0.4, 1.6), min(-0.6, -1.6 + 0.5 * len(ranks)))
    by_rank.set_yticks(ranks[:: max(1, len(ranks) // 16)])
    handles = [*lines, bars, idle]
    below = canvas.legend(figure, handles, [handle.get_label() for handle in handles])
    above = canvas.title(figure, *heading)
    canvas.arrange(figure, left=0.8, above=above + 0.3, below=below + 0.5, across=0.7)
    return figure


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else np.nan
