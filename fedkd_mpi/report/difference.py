"""--diff A B: what differs between two runs: configuration, provenance, data, layers, and where their bits part."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from fedkd_mpi.common.command_line import json_text
from fedkd_mpi.common.units import bytes_text
from fedkd_mpi.errors import UserError, plain
from fedkd_mpi.report.divergence import Parting, common_rounds, compare
from fedkd_mpi.report.energy import layers
from fedkd_mpi.report.names import flattened
from fedkd_mpi.report.runs import Run
from fedkd_mpi.report.sheets import RENDERERS, Sheet

ABSENT = "(none)"
LONGEST = 60  # characters of a displayed value
OWN = ("config", "config_digest")  # attributes that the keys of the configuration stand for
PROVENANCE = ("starts", "files")  # tables of newer logs
WAYS = ("uplink", "downlink")


def difference(a: Run, b: Run) -> dict[str, Any]:
    """Return all differences of two runs, with exact values; docs/report.md describes the keys."""
    rounds, partings = common_rounds(a, b), compare(a, b)
    return {
        "a": plain(str(a.path)),
        "b": plain(str(b.path)),
        "configuration": _changes(flattened(a.config), flattened(b.config)),
        "provenance": _changes(provenance(a), provenance(b)),
        "data": _data(a, b),
        "layers": _layers(a, b, rounds),
        "rounds_compared": len(rounds),
        "equal_but_times": not partings,
        "first": asdict(partings[0]) if partings else None,
        "first_layer": next((asdict(parting) for parting in partings if parting.layer is not None), None),
        "columns": [asdict(parting) for parting in partings],
    }


def provenance(run: Run) -> dict[str, Any]:
    """Return what a log says of its origin: its attributes without the configuration, and the tables of PROVENANCE.

    A row of a table is named by its number, from 1: "starts.1.torch".
    """
    found = {key: value for key, value in run.log.attrs.items() if key not in OWN}
    for table in (each for each in PROVENANCE if each in run.log):
        columns = {name: values.tolist() for name, values in run.log[table].items()}
        for row, values in enumerate(zip(*columns.values(), strict=True), 1):
            found |= {f"{table}.{row}.{name}": value for name, value in zip(columns, values, strict=True)}
    return flattened(found)


def whole_text(value: Any) -> str:
    """Return a value of a configuration or an attribute as one text, uncut."""
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def parts(a: Run, b: Run) -> Iterator[Sheet | str]:
    """Yield the differences as tables, and as lines where there is none."""
    found = difference(a, b)
    for letter, run in (("A", a), ("B", b)):
        yield f"{letter}: {run.name}, seed {run.log.attrs['seed']}, {run.status()}, {plain(str(run.path))}"
    yield verdict(a, b, found)
    if found["columns"]:
        yield _columns(found)
    for part, what in (("configuration", "key"), ("provenance", "attribute")):
        yield _pairs(part.capitalize(), what, found[part]) if found[part] else f"{part.capitalize()}: equal"
    yield _data_sheet(found["data"]) if found["data"] else "Data: the clients have equal numbers of samples and labels"
    yield from _layer_sheets(found)


def verdict(a: Run, b: Run, found: Mapping[str, Any]) -> str:
    """Return the sentence that says whether and where the bits of two runs part."""
    if not found["rounds_compared"]:
        return "Bits: the logs have no round in common"
    if found["equal_but_times"]:
        lengths = {run.log.rounds_completed for run in (a, b)}
        of_both = " that both logs have" if len(lengths) > 1 else ""
        return f"Bits: equal in all columns but times and placement, {_rounds(found)}{of_both}"
    first, layer = Parting(**found["first"]), found["first_layer"]
    line = (
        f"Bits: they part in {plain(first.place())}: {first.column} is {_exact(first.a)} in A, {_exact(first.b)} in B"
    )
    if layer and first.layer is None:
        of_layer = Parting(**layer)
        line += f"; the first layer that differs: {plain(of_layer.place())}, {of_layer.column}"
    return line


def _changes(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the keys whose values differ; a key that a run does not have is absent from its entry."""
    changes = []
    for key in dict.fromkeys([*ours, *theirs]):
        values = {side: values[key] for side, values in (("a", ours), ("b", theirs)) if key in values}
        if len({json.dumps(value, sort_keys=True, default=str) for value in values.values()}) > 1 or len(values) == 1:
            changes.append({"key": key} | values)
    return changes


def _data(a: Run, b: Run) -> list[dict[str, Any]]:
    """Return the columns of the table clients that differ, and for each the first client."""
    changes: list[dict[str, Any]] = []
    if a.clients != b.clients:
        changes.append({"column": "clients", "differing": None, "client": None, "a": a.clients, "b": b.clients})
    ours, theirs, both = a.log["clients"], b.log["clients"], min(a.clients, b.clients)
    for name in dict.fromkeys([*ours, *theirs]):
        if name == "mpi_rank":  # placement, not data
            continue
        if name not in ours or name not in theirs or ours[name].shape[1:] != theirs[name].shape[1:]:
            classes = [table[name].shape[1:] if name in table else None for table in (ours, theirs)]
            shapes = [None if shape is None else f"{shape[0]} classes" for shape in classes]
            changes.append({"column": name, "differing": None, "client": None, "a": shapes[0], "b": shapes[1]})
            continue
        left, right = ours[name][:both], theirs[name][:both]
        different = np.flatnonzero((left != right).reshape(both, -1).any(axis=1))
        if len(different):
            first = int(different[0])
            pair = {"a": left[first].tolist(), "b": right[first].tolist()}
            changes.append({"column": name, "differing": len(different), "client": first} | pair)
    return changes


def _layers(a: Run, b: Run, rounds: np.ndarray) -> list[dict[str, Any]]:
    """Return bytes, mean rank and mean energy of every layer and direction, over the rounds of both logs."""
    sides = [{(layer.name, layer.shape): layer for layer in layers(run)} for run in (a, b)]
    sums = [{way: _sums(run, way, rounds) for way in WAYS} for run in (a, b)]
    places = [{key: position for position, key in enumerate(side)} for side in sides]
    found = []
    for name, shape in dict.fromkeys([*sides[0], *sides[1]]):
        row: dict[str, Any] = {"layer": plain(name), "shape": "x".join(map(str, shape)) or "scalar"}
        for way in WAYS:
            for position, what in enumerate(("bytes", "rank", "energy")):
                row[f"{way}_{what}"] = [
                    None if (name, shape) not in place else of_run[way][position][place[name, shape]]
                    for place, of_run in zip(places, sums, strict=True)
                ]
        found.append(row)
    return found


def _sums(run: Run, way: str, rounds: np.ndarray) -> tuple[list[int], list[float], list[float]]:
    """Return the bytes, the mean rank (NaN: always raw) and the mean energy of every layer in one direction."""
    table = run.log[way]
    rows = np.isin(table["round"], rounds)
    copies = np.ones(len(rows), int) if way == "uplink" else run.rounds["cohort_size"]  # one broadcast, many receivers
    sizes = (table["layer_bytes"] * copies[:, None])[rows].sum(axis=0)
    ranks = table["layer_rank"][rows].astype(float)
    ranks[ranks < 0] = np.nan
    counts = np.maximum(np.isfinite(ranks).sum(axis=0), 1)
    rank = np.where(np.isfinite(ranks).any(axis=0), np.nansum(ranks, axis=0) / counts, np.nan)
    energy = table["layer_energy"][rows].sum(axis=0) / max(int(rows.sum()), 1)
    return sizes.tolist(), rank.tolist(), energy.tolist()


def _pairs(title: str, what: str, changes: Sequence[Mapping[str, Any]]) -> Sheet:
    rows = [[plain(change["key"], LONGEST), *_excerpts(change)] for change in changes]
    return Sheet(title, [what, "A", "B"], rows, 3)


def _data_sheet(changes: Sequence[Mapping[str, Any]]) -> Sheet:
    rows = []
    for change in changes:
        counts = [ABSENT if change[key] is None else str(change[key]) for key in ("differing", "client")]
        rows.append([change["column"], *counts, *_excerpts(change)])
    return Sheet("Data of the clients", ["column", "clients that differ", "first", "A", "B"], rows)


def _columns(found: Mapping[str, Any]) -> Sheet:
    rows = []
    for parting in (Parting(**entry) for entry in found["columns"]):
        client = "" if parting.client is None else str(parting.client)
        layer = plain(parting.layer or "", LONGEST)
        share = f"{parting.differing} of {parting.compared}"
        rows.append([parting.column, str(parting.round), client, layer, _exact(parting.a), _exact(parting.b), share])
    heads = ["column", "first round", "client", "layer", "A", "B", "values that differ"]
    return Sheet("Columns that differ, in the order in which a run computes them", heads, rows)


def _layer_sheets(found: Mapping[str, Any]) -> Iterator[Sheet]:
    if not found["layers"]:
        return
    note = f"Whole cohort, {_rounds(found)} that both logs have."
    texts: dict[str, Callable[[Any], str]] = {
        "bytes": bytes_text,
        "rank": lambda value: "raw" if np.isnan(value) else f"{value:.2f}",
        "energy": "{:.6f}".format,
    }

    def cells(row: Mapping[str, Any], way: str, what: str) -> list[str]:
        return [ABSENT if value is None else texts[what](value) for value in row[f"{way}_{what}"]]

    heads, rows = ["layer", "shape"], [[row["layer"], row["shape"]] for row in found["layers"]]
    for way in WAYS:
        heads += [f"{way}\nA", f"{way}\nB", f"{way}\nB / A"]
        for line, row in zip(rows, found["layers"], strict=True):
            ours, theirs = row[f"{way}_bytes"]
            line += [*cells(row, way, "bytes"), f"{theirs / ours:.3f}" if ours and theirs is not None else "-"]
    yield Sheet("Bytes by layer", heads, rows, 2, note)
    heads, rows = ["layer"], [[row["layer"]] for row in found["layers"]]
    for way in WAYS:
        heads += [f"{way} {what}\n{letter}" for what in ("rank", "energy") for letter in "AB"]
        for line, row in zip(rows, found["layers"], strict=True):
            line += [*cells(row, way, "rank"), *cells(row, way, "energy")]
    yield Sheet(
        "Ranks and energies by layer",
        heads,
        rows,
        1,
        f"Means over messages, whole cohort, {_rounds(found)} that both logs have.",
    )


def _rounds(found: Mapping[str, Any]) -> str:
    number = found["rounds_compared"]
    return f"{number} round" + "s" * (number != 1)


def _exact(value: Any) -> str:
    return repr(value) if isinstance(value, float) else str(value)


def _excerpts(change: Mapping[str, Any]) -> Iterator[str]:
    """Yield both values as text; of long ones the part from the first difference on."""
    texts = [whole_text(change[side]) if side in change else ABSENT for side in "ab"]
    same = next((at for at, (x, y) in enumerate(zip(*texts, strict=False)) if x != y), min(map(len, texts)))
    start = max(0, same - LONGEST // 3) if max(map(len, texts)) > LONGEST else 0
    for text in texts:
        yield plain(f"…{text[start:]}" if start else text, LONGEST)


def write(a: Run, b: Run, form: str) -> str:
    """Return the differences in one of the formats of --format; raises UserError for csv."""
    if form == "json":
        return json_text(difference(a, b))
    if form not in RENDERERS:
        raise UserError(f"--diff has no --format {form}: choose json, {', '.join(RENDERERS)}")
    return "\n\n".join(part if isinstance(part, str) else RENDERERS[form](part) for part in parts(a, b))
