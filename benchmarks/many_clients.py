"""many_clients: 10,000 clients of which 200 take part in a round, against 32 that all do, and against 200.

    python -m benchmarks many_clients [--ranks 3] [--rounds 6] [KEY=VALUE ...]

Samples are made up: 8 x 8 pixels, ten classes, eight a client. `seconds_per_client_10000_over_32` is the time of a
round over its clients, a median over rounds; `peak_memory_10000_over_200` the peak of the fullest process, with the
states of at most CLIENTS_IN_MEMORY clients a process in memory.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from fedkd_mpi import costlog
from fedkd_mpi.datasets import Dataset, image_dataset

COHORT, CLIENTS_IN_MEMORY, SAMPLES = 200, 80, 8
SETTINGS = ["data.name=benchmarks.many_clients:load", "partition={kind: iid, test_fraction: 0.25}"]
SETTINGS += [f"clients_in_memory={CLIENTS_IN_MEMORY}", "checkpoint.every=null", "evaluate.every=1000"]


def load(root: Path | None, seed: int) -> Dataset:
    """Return SAMPLES random pictures for each of the clients that FEDKD_CLIENTS says there are."""
    rng = np.random.default_rng(seed)
    count = SAMPLES * int(os.environ["FEDKD_CLIENTS"])
    labels = rng.integers(10, size=count)
    pixels = (rng.integers(0, 8, (count, 1, 8, 8)) + labels[:, None, None, None]).astype(np.uint8)
    train, test = {"x": pixels, "y": labels}, {"x": pixels[:512], "y": labels[:512]}
    return image_dataset(train, test, [str(label) for label in range(10)], scale=1 / 16)


def run(arguments: list[str]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Run the three in turns and compare."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks many_clients")
    parser.add_argument("--ranks", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("overrides", nargs="*")
    chosen = parser.parse_args(arguments)
    overrides = [*SETTINGS, f"rounds={chosen.rounds}", *chosen.overrides]
    rows = [_measure(chosen.ranks, clients, overrides) for clients in (32, 200, 10_000)]
    few, all_take_part, many = rows
    return {
        "seconds_per_client_10000_over_32": many["ms a client"] / few["ms a client"],
        "peak_memory_10000_over_200": many["peak, MB"] / all_take_part["peak, MB"],
    }, rows


def _measure(ranks: int, clients: int, overrides: list[str]) -> dict[str, Any]:
    cohort = min(clients, COHORT)
    with tempfile.TemporaryDirectory() as folder:
        log, peaks = Path(folder) / "log.h5", Path(folder) / "peaks"
        peaks.mkdir()
        command = [sys.executable, "-m", "benchmarks.many_clients", str(peaks), "--output", str(log)]
        settings = [f"num_clients={clients}", f"cohort_size={cohort}", *overrides]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "FEDKD_CLIENTS": str(clients)}
        launch = ["mpirun", "-n", str(ranks)] if ranks > 1 else []
        subprocess.run([*launch, *command, *settings], check=True, stdout=subprocess.DEVNULL, env=environment)
        with costlog.open(log) as file:
            rounds = file["rounds"]
            seconds = statistics.median(rounds["seconds_total"][1:-1])  # the last round scores
        peak = max(json.loads(path.read_text(encoding="utf-8")) for path in peaks.iterdir())
    return {"clients": clients, "a round": cohort, "ms a client": 1e3 * seconds / cohort, "peak, MB": peak / 1e6}


if __name__ == "__main__":
    from fedkd_mpi.run import main

    where, *rest = sys.argv[1:]
    code = main(rest)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    (Path(where) / str(os.getpid())).write_text(json.dumps(peak), encoding="utf-8")
    sys.exit(code)
