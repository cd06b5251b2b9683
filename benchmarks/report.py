"""report: the time of tables and figures of many rounds, relative to what cannot be avoided.

    python -m benchmarks report [--rounds 1000] [--clients 32] [--runs 12] [--repetitions 3]

`tables_over_reading`: time to load a long log and build its tables, over the time to read and check the log alone.
`figures_over_one_process`: time to draw the figures of many runs of 40 rounds on all cores, over that in one process.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fedkd_mpi import costlog
from fedkd_mpi.costlog import schema
from fedkd_mpi.report import drawing, runs, tables

LAYERS, RANKS, PLOTTED = 12, 4, 40


def run(arguments: list[str]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Time tables of one log of random numbers, and figures of several; the two of a pair alternate."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks report")
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--runs", type=int, default=12)
    parser.add_argument("--repetitions", type=int, default=3)
    chosen = parser.parse_args(arguments)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        long = _log(folder / "long.h5", chosen.rounds, chosen.clients, 0)
        many = [_log(folder / f"{number}.h5", PLOTTED, 12, number) for number in range(chosen.runs)]
        for _ in range(chosen.repetitions):
            reading, made = _seconds(lambda: _read(long)), _seconds(lambda: _tables(long))
            alone = _seconds(lambda: _draw(many, folder / "plots", 1))
            together = _seconds(lambda: _draw(many, folder / "plots", None))
            rows.append({"read, s": reading, "tables, s": made, "one process, s": alone, "all cores, s": together})
    return {
        "tables_over_reading": statistics.median(row["tables, s"] / row["read, s"] for row in rows),
        "figures_over_one_process": statistics.median(row["all cores, s"] / row["one process, s"] for row in rows),
    }, rows


def _seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def _read(path: Path) -> None:
    with costlog.open(path) as log:
        log.check()


def _tables(path: Path) -> None:
    found, _ = runs.load([path], runs.Target())
    tables.build(tables.Report(runs.groups(found), runs.Target()))


def _draw(paths: list[Path], folder: Path, workers: int | None) -> None:
    found, _ = runs.load(paths, runs.Target())
    drawing.save(runs.groups(found), runs.Target(), folder, lambda line: None, workers)


def _log(path: Path, rounds: int, clients: int, number: int) -> Path:
    """Write a log of random numbers whose sums agree; `number` makes its configuration another."""
    rng = np.random.default_rng(number)
    text = yaml.safe_dump({"name": "made", "seed": 0, "rounds": rounds, "method": "fedkd", "number": number})
    attrs = dict.fromkeys(("package_version", "mpi_library"), "none") | {
        "config": text,
        "seed": 0,
        "hostnames": ["here"],
        "data": [],
    }
    attrs |= {"config_digest": hashlib.sha256(text.encode()).hexdigest(), "started": "2026-01-01T00:00:00+00:00"}
    everyone = np.arange(clients)
    held = {"train_samples": everyone, "test_samples": everyone, "mpi_rank": everyone % RANKS}
    parts = [(f"layers.{index}.weight", (64, 64), True) for index in range(LAYERS)]
    writer = costlog.Writer.create(path, attrs, parts, held, ["accuracy"], RANKS)
    columns = schema.growing(["accuracy"])
    who = {"client": everyone, "mpi_rank": everyone % RANKS}

    def values(table: str, shape: tuple[int, ...]) -> dict[str, Any]:
        unused = schema.ENCRYPTION | schema.DIFFERENTIAL
        names = [(key, col) for key, col in columns[table].items() if (table, key) not in unused]
        return {key: (rng.integers(0, 99, shape) if col.dtype == "int64" else rng.random(shape)) for key, col in names}

    def message(shape: tuple[int, ...]) -> dict[str, Any]:
        sizes = rng.integers(1, 10**5, (*shape, LAYERS))
        ranks, energies = rng.integers(1, 64, sizes.shape), rng.random(sizes.shape)
        made = {"layer_bytes": sizes, "layer_rank": ranks, "layer_energy": energies}
        return made | {"header_bytes": np.full(shape, 53), "bytes": sizes.sum(-1) + 53}

    for index in range(rounds):
        up, down = who | message((clients,)), message(())
        row = {key: value.item() if hasattr(value, "item") else value for key, value in values("rounds", ()).items()}
        row |= {"round": index, "cohort_size": clients, "catchup_bytes": 0, "skipped_clients": 0}
        row |= {"uplink_bytes": up["bytes"].sum(), "uplink_header_bytes": up["header_bytes"].sum()}
        row |= {"downlink_bytes": clients * down["bytes"], "downlink_header_bytes": clients * 53}
        trained = {key: value for key, value in values("training", (clients,)).items() if key != "round"}
        writer.append_round(row, up, down, values("mpi", (RANKS,)), trained | who)
    writer.finish("completed")
    return path
