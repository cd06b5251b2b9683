"""--published: the figures that others print for a setting, with the runs of this package beside them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fedkd_mpi.config.sweep_file import Published
from fedkd_mpi.errors import UserError, plain
from fedkd_mpi.report.clients import by_client
from fedkd_mpi.report.columns import number
from fedkd_mpi.report.names import ABSENT
from fedkd_mpi.report.runs import SCORES, Run
from fedkd_mpi.report.sheets import Sheet
from fedkd_mpi.report.tables import Report

BY_CLIENT = "teachers, own test samples, each client's own best or last round"
MARKS = {"paper": "printed there", "code": "of its code", "?": "quoted elsewhere, derived or unclear"}


def rows(report: Report, others: Published) -> list[dict[str, Any]]:
    """Return the published rows in their order, then the runs that none of them names; None where a value is unknown.

    `here` are our scores by seed, on the published scale, and `mean` is their mean. A run belongs to a row by the name
    in its configuration. Raises UserError if the runs lack the metric.
    """
    named = {row.run for row in others.rows}
    left = [index for index, known in enumerate(report.names) if known.given not in named]
    found = []
    for row in others.rows:
        indices: list[int | None] = [index for index, known in enumerate(report.names) if known.given == row.run]
        fixed = {"method": row.method, "published": row.value, "mark": row.mark, "note": row.note}
        found += [fixed | _ours(report, index, others, row.value) for index in indices or [None]]
    unnamed = {"method": None, "published": None, "mark": None, "note": ""}
    return found + [unnamed | _ours(report, index, others, None) for index in left]


def sheet(report: Report, others: Published, form: str) -> Sheet:
    """Return the table of published figures beside our means over seeds, and their difference."""
    made = rows(report, others)
    places = None if form == "markdown" else 2
    lines = []
    for row in made:
        known = [value for value in row["here"] if value is not None]
        here = number(row["mean"], places) if row["mean"] is not None else ABSENT
        if len(known) > 1:
            here += f" ± {number(float(np.std(known, ddof=1)), places)}"
        told = ABSENT if row["published"] is None else number(row["published"], places)
        apart = ABSENT if row["difference"] is None else f"{row['difference']:+.2f}"
        lines.append([plain(row["method"] or ABSENT), told, row["mark"] or ABSENT, row["run"] or ABSENT, here, apart])
        lines[-1] += [str(row["rounds"] or ABSENT), plain(row["note"])]
    what = BY_CLIENT if others.score == "teacher_by_client" else SCORES[others.score]
    what += "" if others.client is None else f" (client {others.client} alone)"
    marks = "; ".join(f"{mark}: {meaning}" for mark, meaning in MARKS.items())
    metric = report.groups[0][0].metric if others.metric is None else others.metric
    times = "" if others.scale == 1 else f", times {others.scale:g}"
    note = f"Published: {plain(others.source)}. Here: {metric}, {what}, {others.which} round{times}. Marks: {marks}."
    heads = ["method", "published", "mark", "run", "here", "here minus\npublished", "rounds", "note"]
    return Sheet("Published beside here", heads, lines, 1, note, frozenset((2, 3, 7)))


def _ours(report: Report, index: int | None, others: Published, told: float | None) -> dict[str, Any]:
    """Return the columns of our group of runs in a row whose published figure is `told`."""
    if index is None:
        return {"run": None, "seeds": [], "here": [], "mean": None, "difference": None, "rounds": None}
    group = report.groups[index]
    here = [others.scale * _value(run, others) for run in group]
    known = [value for value in here if not math.isnan(value)]
    mean = float(np.mean(known)) if known else None
    return {
        "run": report.names[index].id,
        "seeds": [int(run.log.attrs["seed"]) for run in group],
        "here": [None if math.isnan(value) else value for value in here],
        "mean": mean,
        "difference": None if mean is None or told is None else mean - told,
        "rounds": min(run.log.rounds_completed for run in group),
    }


def _value(run: Run, others: Published) -> float:
    """Return our score of one log as the published ones are taken: of the last or the best round, NaN if unknown."""
    metric = others.metric or run.metric
    if metric not in run.metrics:
        raise UserError(f"--published: {run.path} has no metric {metric}: it has {', '.join(run.metrics) or 'none'}")
    best = np.min if metric in run.log.attrs["lower_is_better"] else np.max
    if others.score == "teacher_by_client":
        table = by_client(run, f"teacher_{metric}")
        table = table if others.client is None else table[others.client : others.client + 1]
    else:
        table = run.score(others.score, metric)[None]
    known = [values[~np.isnan(values)] for values in table]
    taken = [values[-1] if others.which == "last" else best(values) for values in known if len(values)]
    return float(np.mean(taken)) if taken else math.nan
