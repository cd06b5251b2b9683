"""scaling: a model of the time of a round as a function of clients and processes, and the point at which rank 0 limits.

    python -m benchmarks scaling [--config fashion_mnist.yaml] [--clients 8,16,32,64] [--ranks 3] [KEY=VALUE ...]

The model is fitted to runs of a few short rounds. Training and encoding take a time per client, divided among the
client processes. Reading and adding messages (gather, aggregate) and the downlink (broadcast) take rank 0 a constant
time plus a time per client (docs/scaling.md). `predicted_over_measured` is for one run that was not fitted, with the
mean number of clients of the two largest runs and one process less. `saturation` is the number of client processes at
which rank 0 is busy for the same time as they are.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from fedkd_mpi import costlog

SHORT = ["rounds=8", "local.epochs=null", "local.steps=4", "evaluate.every=1000", "evaluate.global_teachers=false"]
SHORT += ["checkpoint.every=null", "partition={kind: iid}"]
SERVER = ("seconds_gather", "seconds_aggregate", "seconds_broadcast")


def run(arguments: list[str]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Measure, fit and predict."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks scaling")
    parser.add_argument("--config", default="fashion_mnist.yaml")
    parser.add_argument("--clients", default="8,16,32,64")
    parser.add_argument("--ranks", type=int, default=3)
    parser.add_argument("overrides", nargs="*")
    chosen = parser.parse_intermixed_args(arguments)
    command = ["--config", chosen.config, *SHORT, *chosen.overrides]
    counts = [int(count) for count in chosen.clients.split(",")]
    rows = [_measure(command, count, chosen.ranks) for count in counts]
    client = float(np.mean([row["ms per client"] for row in rows]))
    fixed, each = _line(counts, [row["rank 0, ms"] for row in rows])
    held_out = _measure(command, sum(sorted(counts)[-2:]) // 2, max(chosen.ranks - 1, 2))
    for row in (*rows, held_out):
        most = -(-row["clients"] // max(row["ranks"] - 1, 1))
        row["predicted, ms"] = client * most + fixed + each * row["clients"]
    claims = {
        "client_ms": client,
        "rank_0_ms_fixed": fixed,
        "rank_0_ms_per_client": each,
        "saturation": client / each,
        "predicted_over_measured": held_out["predicted, ms"] / held_out["round, ms"],
    }
    return claims, [*rows, held_out]


def _line(x: list[int], y: list[float]) -> tuple[float, float]:
    slope, constant = np.polyfit(x, y, 1)
    return float(constant), float(slope)


def _measure(command: list[str], clients: int, ranks: int) -> dict[str, Any]:
    """Run a few rounds and return medians over them without the first (warm-up) and the last (scores)."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.h5"
        whole = ["mpirun", "-n", str(ranks), sys.executable, "-m", "fedkd_mpi.run", "--output", str(log), *command]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run([*whole, f"num_clients={clients}"], check=True, stdout=subprocess.DEVNULL, env=environment)
        with costlog.open(log) as file:
            rounds, training, uplink = file["rounds"], file["training"], file["uplink"]
            inner = slice(1, len(rounds["round"]) - 1)
            kept = np.isin(training["round"], rounds["round"][inner])
            own = (training["seconds_train"] + training["seconds_encode"])[kept]
            server = np.sum([rounds[name][inner] for name in SERVER], axis=0)
            return {
                "clients": clients,
                "ranks": ranks,
                "ms per client": 1e3 * float(np.median(own)),
                "kB per message": float(uplink["bytes"].mean()) / 1e3,
                "rank 0, ms": 1e3 * float(np.median(server)),
                "round, ms": 1e3 * float(np.median(rounds["seconds_total"][inner])),
            }
