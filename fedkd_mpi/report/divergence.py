"""Where the bits of two runs part: the logged columns, times and placement aside, compared round by round."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedkd_mpi.report.energy import layers
from fedkd_mpi.report.runs import Run

BEFORE = ("threshold", "cohort_size")  # columns of rounds that are known before the clients train
MESSAGE = ("spectrum", "layer_rank", "layer_energy", "layer_bytes", "header_bytes", "bytes")  # causes come first
STAGES = ("start", "training", "uplink", "downlink", "scores")  # the order of a round


@dataclass(frozen=True)
class Parting:
    """The first difference of one column: its place, the two values, and how many of all values differ.

    `round` counts from 1. `client` and `layer` are None if the column has none.
    """

    column: str
    round: int
    client: int | None
    layer: str | None
    a: Any
    b: Any
    differing: int
    compared: int

    def place(self) -> str:
        """Return the place as text, e.g. 'round 3, client 5, layer fc.weight'."""
        parts = (("round", self.round), ("client", self.client), ("layer", self.layer))
        return ", ".join(f"{name} {value}" for name, value in parts if value is not None)


def compare(a: Run, b: Run) -> list[Parting]:
    """Return the first difference of every column that differs, in the order in which a run computes them.

    Only the rounds, clients and layers of both runs are compared; a client that only one run has in a round is a
    difference of the column `client`.
    """
    found = [parting for stage in STAGES for parting in _stage(a, b, stage)]
    return sorted(found, key=lambda parting: parting.round)  # stable: within a round the order of the stages remains


def common_rounds(a: Run, b: Run) -> np.ndarray:
    """Return the indices of the rounds that both logs contain."""
    return np.intersect1d(a.rounds["round"], b.rounds["round"])


def compared(run: Run, stage: str) -> tuple[str, list[str]]:
    """Return the table of a stage, and its columns that do not depend on time or placement."""
    table = {"start": "rounds", "scores": "rounds"}.get(stage, stage)
    names = [name for name in run.log[table] if not name.startswith("seconds_")]
    if table == "rounds":
        return table, [name for name in names if name != "round" and (name in BEFORE) == (stage == "start")]
    if stage == "training":
        return table, [name for name in names if name not in ("round", "client", "mpi_rank")]
    return table, [name for name in MESSAGE if name in names]


def fingerprints(run: Run) -> dict[str, list[str]]:
    """Return a checksum of the compared columns of every stage and round; equal bits have equal checksums."""
    found = {}
    for stage in STAGES:
        table, names = compared(run, stage)
        columns = {name: run.log[table][name] for name in (*names, *_keys(table))}
        order = np.lexsort([columns[key] for key in reversed(_keys(table))])
        starts = np.searchsorted(columns["round"][order], run.rounds["round"])
        parts = np.split(order, starts[1:]) if len(starts) else []
        found[stage] = [_checksum(columns, rows) for rows in parts]
    return found


def _keys(table: str) -> tuple[str, ...]:
    return ("round", "client") if table in ("training", "uplink") else ("round",)


def _checksum(columns: Mapping[str, np.ndarray], rows: np.ndarray) -> str:
    total = 0
    for name in sorted(columns):
        total = zlib.crc32(np.ascontiguousarray(columns[name][rows]).tobytes(), total)
    return f"{total:08x}"


def _stage(a: Run, b: Run, stage: str) -> Iterator[Parting]:
    (table, names), (_, others) = compared(a, stage), compared(b, stage)
    tables, rounds = (a.log[table], b.log[table]), common_rounds(a, b)
    keys = [{key: columns[key] for key in _keys(table)} for columns in tables]
    # Clients are counted from the first common round, so that the key of a row is a small number.
    first, most = rounds[0] if len(rounds) else 0, max(a.clients, b.clients, 1)
    rows = [np.flatnonzero(np.isin(key["round"], rounds)) for key in keys]
    codes = [
        (key["round"][row] - first) * most + (key["client"][row] if "client" in key else 0)
        for key, row in zip(keys, rows, strict=True)
    ]
    if "client" in keys[0]:
        yield from _presence(table, (codes[0], codes[1]), first, most)
    _, in_a, in_b = np.intersect1d(*codes, return_indices=True)
    at_a, at_b = rows[0][in_a], rows[1][in_b]
    for name in (name for name in names if name in others):
        yield from _column(a, b, f"{table}/{name}", (tables[0][name][at_a], tables[1][name][at_b]), keys[0], at_a)


def _presence(table: str, codes: tuple[np.ndarray, np.ndarray], first: int, most: int) -> Iterator[Parting]:
    """Yield the first client that has a row in only one of the runs."""
    alone = np.setxor1d(*codes)
    if len(alone):
        number, client = divmod(int(alone[0]), most)
        ours, theirs = ("yes" if alone[0] in code else "no" for code in codes)
        place = (f"{table}/client", int(first) + number + 1, client, None)
        yield Parting(*place, ours, theirs, len(alone), len(np.union1d(*codes)))


def _column(
    a: Run,
    b: Run,
    column: str,
    values: tuple[np.ndarray, np.ndarray],
    keys: Mapping[str, np.ndarray],
    rows: np.ndarray,
) -> Iterator[Parting]:
    names: list[str] = []
    left, right = values
    if left.ndim == 2:
        names, at_a, at_b = _axis(a, b, spectrum=column.endswith("/spectrum"))
        left, right = left[:, at_a], right[:, at_b]
    different = _bits(left) != _bits(right)
    if not different.any():
        return
    row, *rest = np.argwhere(different)[0].tolist()
    where = (row, *rest)
    yield Parting(
        column,
        int(keys["round"][rows[row]]) + 1,
        int(keys["client"][rows[row]]) if "client" in keys else None,
        names[rest[0]] if rest else None,
        left[where].item(),
        right[where].item(),
        int(different.sum()),
        different.size,
    )


def _axis(a: Run, b: Run, spectrum: bool) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Return names and positions along the second axis of what both runs have: layers, or components of layers."""
    both = []
    for run in (a, b):
        parts = {}
        start = 0
        for position, layer in enumerate(layers(run)):
            width = (min(layer.matrix_shape) if layer.compressible else 0) if spectrum else 1
            parts[layer.name, layer.shape] = range(start, start + width) if spectrum else range(position, position + 1)
            start += width
        both.append(parts)
    ours, theirs = both
    shared = [key for key in ours if key in theirs and len(ours[key]) == len(theirs[key])]
    names = [name for name, shape in shared for _ in ours[name, shape]]
    positions = [np.array([place for key in shared for place in parts[key]], int) for parts in (ours, theirs)]
    return names, positions[0], positions[1]


def _bits(values: np.ndarray) -> np.ndarray:
    """Return floats as integers, so that NaN equals itself and 0 differs from -0."""
    return values.view(f"i{values.itemsize}") if values.dtype.kind == "f" else values
