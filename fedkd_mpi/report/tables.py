"""The tables of the report: scores, bytes and seconds per configuration, mean and standard deviation over seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fedkd_mpi.common.units import bytes_text, seconds_text
from fedkd_mpi.costlog.schema import PHASES, STRAGGLER
from fedkd_mpi.report.runs import SCORES, Run, Target
from fedkd_mpi.report.sheets import Sheet

Rows = Sequence[dict[str, Any]]  # of one group
LABELS = ["run", "method", "codec"]


def build(groups: Sequence[Sequence[Run]], target: Target) -> list[Sheet]:
    """Return the sheets of scores, bytes and seconds."""
    tables = [[run.row(target) for run in group] for group in groups]
    return [_scores(groups, tables), _bytes(tables, target), _seconds(tables)]


def labels(rows: Rows) -> list[str]:
    """Return the labels of a group in every sheet."""
    return [rows[0]["name"], rows[0]["method"], rows[0]["codec"]]


def spread(values: Sequence[float], write: Callable[[float], str]) -> str:
    """Return "mean ± sd" of the known values, only the value if there is one, "-" if there is none.

    The standard deviation is that of a sample (n - 1).
    """
    known = [value for value in values if not np.isnan(value)]
    if not known:
        return "-"
    mean = write(float(np.mean(known)))
    return mean if len(known) == 1 else f"{mean} ± {write(float(np.std(known, ddof=1)))}"


def _scores(groups: Sequence[Sequence[Run]], tables: Sequence[Rows]) -> Sheet:
    used = [name for name in SCORES if any(not np.isnan(row[f"{name}_last"]) for rows in tables for row in rows)]
    heads = [f"{name.replace('_', ' ')}\n{which}" for name in used for which in ("last", "best")]
    lines = []
    for group, rows in zip(groups, tables, strict=True):
        cells = [
            spread([row[f"{name}_{which}"] for row in rows], "{:.4f}".format)
            for name in used
            for which in ("last", "best")
        ]
        states = sorted({run.status() for run in group})
        lines.append(
            [*labels(rows), str(len(rows)), str(max(row["rounds"] for row in rows)), *cells, "; ".join(states)]
        )
    metrics = sorted({row["metric"] for rows in tables for row in rows})
    note = "; ".join(f"{name.replace('_', ' ')}: {SCORES[name]}" for name in used)
    heads = [*LABELS, "logs", "rounds", *heads, "status"]
    return Sheet(f"Scores ({', '.join(metrics)})", heads, lines, len(LABELS), note)


def _bytes(tables: Sequence[Rows], target: Target) -> Sheet:
    catchup = any(row["catchup_bytes"] for rows in tables for row in rows)
    legs = {"up": "uplink", "down": "downlink"} | ({"catch-up": "catchup"} if catchup else {})
    lines = []
    for rows in tables:
        cells = [
            spread([row[f"{leg}_bytes"] / (row["clients"] or np.nan) for row in rows], bytes_text)
            for leg in legs.values()
        ]
        cells.append(spread([row["bytes_per_client"] for row in rows], bytes_text))
        cells.append(spread([row["total_bytes"] for row in rows], bytes_text))
        cells.append(spread([100 * row["saving"] + 0.0 for row in rows], _percent))
        cells.append(spread([row["factor"] for row in rows], "{:.2f}".format))
        if target.value is not None:
            reached = sum(not np.isnan(row["bytes_to_target"]) for row in rows)
            cells += [
                spread([row[f"{what}_to_target"] for row in rows], write)
                for what, write in (("bytes", bytes_text), ("rounds", "{:.1f}".format))
            ]
            cells.append(f"{reached} of {len(rows)}")
        lines.append([*labels(rows), *cells])
    heads = [f"{way}\nper client" for way in (*legs, "both" if not catchup else "all")]
    heads += [f"all clients\n{'up and down' if not catchup else 'up, down, catch-up'}"]
    heads += ["saving against\nFedAvg teacher", "FedAvg teacher\nover this"]
    if target.value is not None:
        heads += [f"bytes to\n{target.score} {target.value:g}", "rounds to\nthe same", "logs that\nreach it"]
    note = "Payload and headers as sent; FedAvg teacher: the teacher's float32 parameters up and down, no headers."
    if catchup:
        note += (
            " Catch-up: bytes that clients fetch after missed rounds; part of totals, savings and bytes to a target."
        )
    return Sheet("Bytes", [*LABELS, *heads], lines, len(LABELS), note)


def _seconds(tables: Sequence[Rows]) -> Sheet:
    lines = []
    for rows in tables:
        cells = [spread([row[f"seconds_{phase}"] for row in rows], seconds_text) for phase in ("total", *PHASES)]
        late = spread([row["stragglers"] for row in rows], "{:.0f}".format)
        lines.append([*labels(rows), str(rows[0]["mpi_processes"]), *cells, late, str(rows[0]["trainings"])])
    heads = [*LABELS, "MPI\nprocesses", "whole run", *PHASES, "stragglers", "of local\ntrainings"]
    note = (
        "train, encode, evaluate: the slowest process of every round; wait, gather, aggregate, broadcast: the server. "
        f"A straggler is a local training of more than {STRAGGLER:g} times the median of its round."
    )
    return Sheet("Seconds by phase", heads, lines, len(LABELS), note)


def _percent(value: float) -> str:
    return f"{value:.1f} %".replace("-0.0 %", "0.0 %")
