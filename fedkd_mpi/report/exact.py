"""Exact numbers, one row per log: CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedkd_mpi.report import baseline, energy
from fedkd_mpi.report.columns import exact
from fedkd_mpi.report.links import Profile
from fedkd_mpi.report.network import Replay
from fedkd_mpi.report.sheets import csv_cell
from fedkd_mpi.report.tables import Report


def rows(
    report: Report,
    replays: Sequence[tuple[Profile, Mapping[Path, Replay]]],
    thresholds: Sequence[float],
    differences: Sequence[Mapping[str, baseline.Difference]],
) -> dict[Path, dict[str, Any]]:
    """Return the row of every log by its path: id, settings and numbers of the log; None where a number is unknown."""
    made: dict[Path, dict[str, Any]] = {}
    for index, (known, group, of_group) in enumerate(zip(report.names, report.groups, report.rows, strict=True)):
        for run, row in zip(group, of_group, strict=True):
            # A setting may have the name of a number: "rounds" is what was planned, and what was completed.
            line: dict[str, Any] = (
                {"run": known.id} | {k: v for k, v in known.settings.items() if k not in row} | dict(row)
            )
            for profile, results in replays:
                line |= {f"{profile.name}_{key}": value for key, value in results[run.path].row().items()}
            costs = energy.costs(run, thresholds)
            line |= {f"bytes_at_{threshold:g}": costs.get(threshold) for threshold in thresholds}
            if differences:
                line |= {f"difference_{k}": each.by_seed.get(row["seed"]) for k, each in differences[index].items()}
            made[run.path] = {key: value if _is_known(value) else None for key, value in line.items()}
    return made


def chosen(report: Report, keys: Sequence[str]) -> dict[Path, dict[str, Any]]:
    """Return the chosen columns of every log by its path."""
    return {
        run.path: {key: value if _is_known(value := exact(key, known, row)) else None for key in keys}
        for known, group, of_group in zip(report.names, report.groups, report.rows, strict=True)
        for run, row in zip(group, of_group, strict=True)
    }


def as_json(made: Sequence[Mapping[str, Any]], problems: Sequence[str], more: Mapping[str, Any]) -> str:
    """Return rows, problems and more as JSON."""
    return json.dumps({"runs": made, "problems": problems, **more}, indent=2)


def as_csv(made: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as CSV with one line of headers; cells of text that would be formulas begin with '."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    keys = list(dict.fromkeys(key for row in made for key in row))
    writer.writerow([csv_cell(key) for key in keys])
    writer.writerows([csv_cell(row.get(key)) for key in keys] for row in made)
    return buffer.getvalue().rstrip("\n")


def _is_known(value: Any) -> bool:
    """Whether a value is text or a finite number; JSON has neither NaN nor infinity."""
    return not isinstance(value, float) or math.isfinite(value)
