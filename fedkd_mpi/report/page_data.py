"""What the interactive page holds of every log, as plain values for JSON: curves, layers, clients, settings, events."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedkd_mpi.costlog.schema import ENCRYPT, ENCRYPTING, PHASES
from fedkd_mpi.errors import plain
from fedkd_mpi.report import energy, layers
from fedkd_mpi.report.canvas import METRICS
from fedkd_mpi.report.difference import provenance, whole_text
from fedkd_mpi.report.divergence import fingerprints
from fedkd_mpi.report.names import flattened, name
from fedkd_mpi.report.runs import SCORES, Run, Target

CELLS = 400_000  # of all heat maps of a page together, about 7 bytes each
ROWS = 256  # of a heat map of clients
EVENTS = 500  # of one log, the last ones
LONGEST = 2000  # characters of a value of a configuration
MAPS = 12  # heat maps of one log: 3 of layers in 2 directions, 6 of clients
COLUMNS = {
    "student_loss": "training loss, student",
    "teacher_loss": "training loss, teacher",
    "threshold": "energy threshold T",
    "uplink_bytes": "uplink, all clients",
    "downlink_bytes": "downlink, all clients",
    "catchup_bytes": "catch-up, all clients",
    "seconds_total": "seconds",
}


def build(groups: Sequence[Sequence[Run]], target: Target) -> dict[str, Any]:
    """Return the content of the page for groups of runs that differ in the seed alone."""
    known = name(groups)
    count = sum(map(len, groups))
    runs = [_log(run, index, CELLS // (MAPS * count)) for index, group in enumerate(groups) for run in group]
    used = {key for run in runs for key in run["values"]}
    return {
        "groups": [{"id": each.id, "label": each.label()} for each in known],
        "logs": runs,
        "measures": [measure for measure in _measures(groups) if measure["key"] in used],
        "target": {"key": _key(target.score, groups[0][0].metric), "value": target.value},
        "phases": {phase: plain(what.description) for phase, what in PHASES.items()} | {ENCRYPT: ENCRYPTING},
    }


def _measures(groups: Sequence[Sequence[Run]]) -> list[dict[str, str]]:
    """Return what the y axis can show: key, kind, text of the choice, title of the axis."""
    runs = [run for group in groups for run in group]
    titles = {
        metric: METRICS.get(metric, plain(metric))
        + (" (less is better)" if metric in run.log.attrs["lower_is_better"] else "")
        for run in runs
        for metric in (run.metric, *run.metrics)
    }
    found = [
        {"key": _key(score, metric), "kind": "score", "text": plain(f"{metric}: {where}"), "axis": titles[metric]}
        for metric in titles
        for score, where in SCORES.items()
    ]
    for key, text in COLUMNS.items():
        kind = (
            key.rpartition("_")[2] if key.endswith("_bytes") else "seconds" if key.startswith("seconds") else "number"
        )
        axis = f"{text} per round" if kind in ("bytes", "seconds") else text
        found.append({"key": key, "kind": kind, "text": axis, "axis": axis})
    return found


def _key(score: str, metric: str) -> str:
    return f"{score} {metric}"


def _log(run: Run, group: int, limit: int) -> dict[str, Any]:
    rounds = run.rounds
    values = {_key(score, metric): run.score(score, metric) for metric in run.metrics for score in SCORES}
    values |= {key: rounds[key] for key in COLUMNS}
    events = run.log["events"]
    listed = zip(*(events[key][-EVENTS:].tolist() for key in ("round", "client", "level", "message")), strict=True)
    return {
        "group": group,
        "seed": int(run.log.attrs["seed"]),
        "name": run.name,
        "path": plain(str(run.path)),
        "quoted": plain(shlex.quote(str(run.path))),
        "status": run.status(),
        "clients": run.clients,
        "rounds": (rounds["round"] + 1).tolist(),
        "bytes": run.total_bytes.tolist(),
        "seconds": _short(rounds["seconds_total"].cumsum()),
        "values": {key: _short(column, 9) for key, column in values.items() if _known(column)},
        "phases": _phases(run, limit),
        "processes": {
            key: _short(np.nansum(run.log["mpi"][key], axis=0)) for key in ("seconds_compute", "seconds_wait")
        },
        "layers": _layers(run, limit),
        "clientMaps": _clients(run, limit),
        "configuration": _texts(flattened(run.config)),
        "provenance": _texts(provenance(run)),
        "events": [[number + 1, client, level, plain(message)] for number, client, level, message in listed],
        "eventCount": len(events["round"]),
        "checksums": {stage: "".join(sums) for stage, sums in fingerprints(run).items()},
    }


def _known(column: np.ndarray) -> bool:
    return bool(len(column)) and bool(np.isfinite(column).any())


def _texts(found: Mapping[str, Any]) -> dict[str, str]:
    return {plain(key, LONGEST): plain(whole_text(value), LONGEST) for key, value in found.items()}


def _phases(run: Run, limit: int) -> dict[str, Any]:
    names = [*run.phases, "total"]
    table = np.array([run.rounds[f"seconds_{phase}"] for phase in names])
    means, step = _binned(table, limit)
    return {"names": names, "step": step, "values": [_short(row, 5) for row in means]}


def _layers(run: Run, limit: int) -> dict[str, Any]:
    """Return bytes, rank and energy by layer and round in both directions: means over the messages of a round."""
    parts = energy.layers(run)
    found: dict[str, Any] = {"names": [plain(layer.name) for layer in parts]}
    found["shapes"] = ["x".join(map(str, layer.shape)) or "scalar" for layer in parts]
    for way in ("uplink", "downlink") if parts else ():
        table = run.log[way]
        energies = np.where(table["layer_rank"] < 0, np.nan, table["layer_energy"])  # raw: no rank, no energy
        for what, cells in (("bytes", table["layer_bytes"]), ("rank", table["layer_rank"]), ("energy", energies)):
            found[f"{way} {what}"] = _map(cells, table["round"], run.rounds["round"], limit)
    return found


def _clients(run: Run, limit: int) -> dict[str, Any]:
    """Return scores, losses, bytes and seconds by client and round; clients above ROWS are put together."""
    width = -(-run.clients // ROWS) or 1
    height = -(-run.clients // width)
    found: dict[str, Any] = {
        "names": [
            f"client {first}" if width == 1 else f"clients {first} to {min(first + width, run.clients) - 1}"
            for first in range(0, run.clients, width)
        ]
    }
    training, uplink = run.log["training"], run.log["uplink"]
    columns = [("student", f"student_{run.metric}", training), ("teacher", f"teacher_{run.metric}", training)]
    titles = [plain(f"{run.metric}, {who}, own test samples") for who, _, _ in columns]
    columns += [(key, key, training) for key in ("student_loss", "teacher_loss", "seconds_train")]
    titles += ["training loss, student", "training loss, teacher", "seconds of local training"]
    columns.append(("bytes", "bytes", uplink))
    titles.append("uplink bytes")
    for (_, key, table), title in zip(columns, titles, strict=True):
        rows = np.searchsorted(run.rounds["round"], table["round"])
        grid = np.full((len(run.rounds["round"]), height), np.nan)
        totals, counts = np.zeros(grid.shape), np.zeros(grid.shape)
        values = table[key].astype(float)
        good = np.isfinite(values)
        at = rows[good], table["client"][good] // width
        np.add.at(totals, at, values[good])
        np.add.at(counts, at, 1)
        np.divide(totals, counts, out=grid, where=counts > 0)
        means, step = _binned(grid.T, limit)
        if np.isfinite(means).any():
            found[title] = {"step": step, "values": [_short(row) for row in means]}
    return found


def _map(cells: np.ndarray, of_round: np.ndarray, number: np.ndarray, limit: int) -> dict[str, Any] | None:
    """Return the means of cells [message, layer] by layer and round; None if nothing is known."""
    means, step = _binned(layers.means({"round": of_round, "cells": cells}, "cells", number).T, limit)
    return {"step": step, "values": [_short(row) for row in means]} if np.isfinite(means).any() else None


def _binned(table: np.ndarray, limit: int) -> tuple[np.ndarray, int]:
    """Return means over `step` consecutive columns, so that at most about `limit` cells remain, and the step."""
    rows, columns = table.shape
    step = max(1, -(-rows * columns // max(limit, rows)))
    if step == 1:
        return table, 1
    padded = np.full((rows, -(-columns // step) * step), np.nan)
    padded[:, :columns] = table
    parts = padded.reshape(rows, -1, step)
    known = np.isfinite(parts)
    means = np.full(parts.shape[:2], np.nan)
    np.divide(np.where(known, parts, 0).sum(axis=2), known.sum(axis=2), out=means, where=known.any(axis=2))
    return means, step


def _short(values: np.ndarray, digits: int = 6) -> list[Any]:
    """Return numbers of a few significant digits, whole numbers exactly, None for NaN and infinity."""
    if values.dtype.kind in "iu":
        return values.tolist()
    return [_number(value, digits) for value in values.tolist()]


def _number(value: float, digits: int) -> float | int | None:
    if not np.isfinite(value):
        return None
    if value.is_integer() and abs(value) < 2**53:
        return int(value)
    return float(f"{value:.{digits}g}")


def script_json(content: Any) -> str:
    """Return JSON that stands in a <script> element as it is: no "<", no "&", ASCII alone."""
    text = json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
