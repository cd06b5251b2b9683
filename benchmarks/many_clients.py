"""many_clients: 10,000 clients with 200 per round, compared with 32 and 200 clients that are all in every round.

    python -m benchmarks many_clients [--ranks 3] [--rounds 120] [KEY=VALUE ...]

Samples are synthetic: 8 x 8 pixels, ten classes, eight per client. Measured is the time of a round divided by its
clients, the median over rounds: at the end of the run, when most clients have participated before
(`seconds_per_client_10000_over_32`), and at its beginning, when nearly all are new and their teachers are initialised
(`seconds_per_new_client_over_32`). The 32 clients are measured before and after. `peak_memory_10000_over_200` is the
ratio of the memory of the fullest process, with the states of at most CLIENTS_IN_MEMORY clients in memory per process.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fedkd_mpi import costlog
from fedkd_mpi.common.machine import peak_memory
from fedkd_mpi.datasets import Dataset, image_dataset

COHORT, CLIENTS_IN_MEMORY, SAMPLES = 200, 80, 8
FIRST, LAST = 5, 20  # rounds
SETTINGS = ["data.name=benchmarks.many_clients:load", "partition={kind: iid, test_fraction: 0.25}"]
SETTINGS += [f"clients_in_memory={CLIENTS_IN_MEMORY}", "checkpoint.every=null", "evaluate.every=1000"]


def load(root: Path | None, seed: int) -> Dataset:
    """Return SAMPLES random pictures for each of the FEDKD_CLIENTS clients."""
    rng = np.random.default_rng(seed)
    count = SAMPLES * int(os.environ["FEDKD_CLIENTS"])
    labels = rng.integers(10, size=count)
    pixels = (rng.integers(0, 8, (count, 1, 8, 8)) + labels[:, None, None, None]).astype(np.uint8)
    train: dict[str, np.ndarray] = {"x": pixels, "y": labels}
    test = {name: array[:512] for name, array in train.items()}
    return image_dataset(train, test, [str(label) for label in range(10)], scale=1 / 16)


def run(arguments: list[str]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Run all cases one after another and compare."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks many_clients")
    parser.add_argument("--ranks", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=120)
    parser.add_argument("overrides", nargs="*")
    chosen = parser.parse_args(arguments)
    measure = partial(_measure, chosen.ranks, [*SETTINGS, *chosen.overrides])
    few = [measure(32, chosen.rounds)]
    all_take_part, many = measure(200, min(chosen.rounds, LAST)), measure(10_000, chosen.rounds)
    few.append(measure(32, chosen.rounds))
    beginning, end = _row(many, slice(1, 1 + FIRST)), _row(many, slice(-1 - LAST, -1))
    rows = [_row(one, slice(1, -1)) for one in (*few, all_take_part)] + [beginning, end]
    usual = statistics.mean(row["ms per client"] for row in rows[:2])
    return {
        "seconds_per_client_10000_over_32": end["ms per client"] / usual,
        "seconds_per_new_client_over_32": beginning["ms per client"] / usual,
        "peak_memory_10000_over_200": many.peak / all_take_part.peak,
    }, rows


@dataclass
class Measured:
    """The result of one run: seconds per round and client, new clients per round, peak bytes of a process."""

    clients: int
    cohort: int
    seconds: np.ndarray
    new: np.ndarray
    peak: float


def _row(run: Measured, rounds: slice) -> dict[str, Any]:
    """Return the row of these rounds; the first round warms up and the last one scores."""
    return {
        "clients": run.clients,
        "per round": run.cohort,
        "rounds": len(run.seconds[rounds]),
        "new, %": 100 * run.new[rounds].mean() / run.cohort,
        "ms per client": 1e3 * float(np.median(run.seconds[rounds])),
        "peak, MB": run.peak / 1e6,
    }


def _measure(ranks: int, overrides: list[str], clients: int, rounds: int) -> Measured:
    cohort = min(clients, COHORT)
    with tempfile.TemporaryDirectory() as folder:
        log, peaks = Path(folder) / "log.h5", Path(folder) / "peaks"
        peaks.mkdir()
        command = [sys.executable, "-m", "benchmarks.many_clients", str(peaks), "--output", str(log)]
        settings = [f"num_clients={clients}", f"cohort_size={cohort}", f"rounds={rounds}", *overrides]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "FEDKD_CLIENTS": str(clients)}
        launch = ["mpirun", "-n", str(ranks)] if ranks > 1 else []
        subprocess.run([*launch, *command, *settings], check=True, stdout=subprocess.DEVNULL, env=environment)
        with costlog.open(log) as file:
            seconds = file["rounds"]["seconds_total"][:] / cohort
            took_part = file["training"]["client"][:].reshape(rounds, cohort)
        _, first = np.unique(took_part, return_index=True)
        new = np.bincount(first // cohort, minlength=rounds)
        peak = max(json.loads(path.read_text(encoding="utf-8")) for path in peaks.iterdir())
    return Measured(clients, cohort, seconds, new, peak)


if __name__ == "__main__":
    from fedkd_mpi.run import main

    where, *rest = sys.argv[1:]
    code = main(rest)
    (Path(where) / str(os.getpid())).write_text(json.dumps(peak_memory()), encoding="utf-8")
    sys.exit(code)
