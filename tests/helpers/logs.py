"""Rounds of a cost log made up from their number; run as a program, a writer that appends them until it is killed."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np

from fedkd_mpi import costlog
from fedkd_mpi.costlog import schema
from fedkd_mpi.costlog.column import Column
from fedkd_mpi.errors import RunFault

CONFIG = "name: made-up\nseed: 1\n"
ATTRS = {
    "config": CONFIG,
    "config_digest": hashlib.sha256(CONFIG.encode()).hexdigest(),
    "package_version": "0.1.0",
    "mpi_library": "none",
    "hostnames": ["node1", "nöde2"],
    "seed": 1,
    "started": "2026-11-22T14:00:00+00:00",
    "data": ["train/x uint8 [9, 1, 8, 8] 00ff", "meta 11ee"],
}
FILES = {"path": ["a.gz", "bildér"], "count": [1, 200], "bytes": [2**33, 7], "digest": ["0" * 64, "f" * 64]}
FILES = {name: np.array(values) for name, values in FILES.items()}
LAYERS = [("conv.weight", (4, 3, 3, 3), True), ("conv.bias", (4,), False), ("norm.count", (), False)]
STARTS = schema.FIXED["starts"]
Round = tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any]]


def start(number: int = 0, **more: Any) -> dict[str, Any]:
    """Return a row of the table starts: always the same for the same number."""
    row = {name: f"{name} {number}" if column.dtype == "S" else number for name, column in STARTS.items()}
    return row | {"ended": "", "environment": f"FEDKD_DATA=/dätä\nOMP_NUM_THREADS={number}", **more}


def create(path: Path, *, layers: int = 3, world_size: int = 3, metrics: tuple[str, ...] = ("f1",), **more: Any):
    """Create a log of 4 clients and 2 classes."""
    clients = {"train_samples": [9, 8, 7, 6], "test_samples": [1, 2, 3, 4], "mpi_rank": [0, 1, 2, 2]}
    clients = {name: np.array(values) for name, values in clients.items()}
    clients["label_histogram"] = np.arange(8).reshape(4, 2)
    clients["digest"] = np.array([f"{client:032x}" for client in range(4)])
    more = {"start": start(), "sources": FILES} | more
    return costlog.Writer.create(path, ATTRS, LAYERS[:layers], clients, metrics, world_size, **more)


def make_round(
    number: int,
    *,
    cohort: int = 3,
    layers: int = 3,
    world_size: int = 3,
    metrics: tuple[str, ...] = ("f1",),
    encrypted: bool = False,
    differential: bool = False,
) -> Round:
    """Return the arguments of Writer.append_round for a round: always the same for the same number."""
    rng = np.random.default_rng(number)

    def values(column: Column, shape: tuple[int, ...]) -> np.ndarray:
        return rng.integers(0, 2**40, shape) if column.dtype == "int64" else rng.random(shape)

    def message(shape: tuple[int, ...]) -> dict[str, np.ndarray]:
        sizes, header = rng.integers(0, 2**40, (*shape, layers)), rng.integers(40, 90, shape)
        ranks, energies = rng.integers(-1, 9, (*shape, layers)), rng.random((*shape, layers))
        names = ("bytes", "header_bytes", "layer_rank", "layer_bytes", "layer_energy")
        made = dict(zip(names, (sizes.sum(-1) + header, header, ranks, sizes, energies), strict=True))
        if encrypted:
            added = np.full(shape, 28)
            made |= {"bytes": made["bytes"] + added, "encryption_bytes": added}
        return made

    columns = schema.growing(metrics)
    others = (set() if encrypted else schema.ENCRYPTION) | (set() if differential else schema.DIFFERENTIAL)
    lacking = {name for table, name in others if table == "rounds"}
    who = {"client": rng.permutation(4)[:cohort], "mpi_rank": rng.integers(0, world_size, cohort)}
    uplink, downlink = who | message((cohort,)), message(())
    uplink |= {"norm": rng.random(cohort)} if differential else {}
    rounds = {name: values(column, ()).item() for name, column in columns["rounds"].items() if name not in lacking}
    rounds |= {"round": number, "global_student_f1": np.nan} if "f1" in metrics else {"round": number}
    rounds |= {f"uplink_{name}": uplink[name].sum() for name in schema.SUMMED if name in uplink}
    mpi = {name: values(column, (world_size,)) for name, column in columns["mpi"].items()}
    training = {name: values(column, (cohort,)) for name, column in columns["training"].items() if name != "round"}
    return rounds, uplink, downlink, mpi, training | who


def expect(numbers: range, **shape: Any) -> dict[str, dict[str, np.ndarray]]:
    """Return the tables that a log of these rounds holds, put together without the package."""
    made = [make_round(number, **shape) for number in numbers]
    tables: dict[str, dict[str, np.ndarray]] = {}
    for place, table in enumerate(("rounds", "uplink", "downlink", "mpi", "training")):
        join = np.concatenate if table in ("uplink", "training") else np.stack
        tables[table] = {name: join([parts[place][name] for parts in made]) for name in made[0][place]}
    counts = [len(parts[1]["client"]) for parts in made]
    tables["downlink"]["round"] = np.array(numbers)
    tables["uplink"]["round"] = tables["training"]["round"] = np.repeat(numbers, counts)
    return tables


def write_until_killed(path: Path, first: int, limit: int) -> None:
    """Append rounds, an event before each, and print the number of each when it is done; then the fault, if any."""
    writer = create(path) if first == 0 else costlog.Writer.resume(path, first)
    try:
        for number in range(first, limit):
            writer.event(number, None, "info", f"event of round {number}")
            writer.append_round(*make_round(number))
            sys.stdout.write(f"{number}\n")
            sys.stdout.flush()
    except RunFault as fault:
        sys.stdout.write(f"{fault}\n")
        sys.exit(1)


if __name__ == "__main__":
    write_until_killed(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
