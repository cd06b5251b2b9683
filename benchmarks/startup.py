"""startup: the cost of many processes on few cores, before the first round and while they wait.

    python -m benchmarks startup [--ranks 33] [--seconds 20] [--repetitions 3]

`seconds_33_ranks_over_1`: wall time of the default run with one round of one local step, on all ranks relative to one.
`memory_gib`: peak memory of all processes in another such run, as the sum of PSS.
`idle_core_share`: CPU time of all processes in a barrier except one, divided by the time that they wait for this one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

SMALL = ["rounds=1", "local.epochs=null", "local.steps=1", "checkpoint.every=null"]


def run(arguments: list[str]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Start the default run alternately on many ranks and on one; then let all ranks wait for one."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks startup")
    parser.add_argument("--ranks", type=int, default=33)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--repetitions", type=int, default=3)
    chosen = parser.parse_args(arguments)
    rows, mpirun = [], ["mpirun", "-n", str(chosen.ranks)]
    with tempfile.TemporaryDirectory() as folder:
        for repetition in range(chosen.repetitions):
            log = Path(folder) / f"{repetition}.h5"
            command = [sys.executable, "-m", "fedkd_mpi.run", "--overwrite", "--output", str(log), *SMALL]
            seconds = [_seconds([*launch, *command]) for launch in ([], mpirun)]
            rows.append({"one rank, s": seconds[0], "all ranks, s": seconds[1], "ratio": seconds[1] / seconds[0]})
        held = _memory([*mpirun, *command])
        result = Path(folder) / "waiting.json"
        task = [sys.executable, "-m", "benchmarks.startup", str(result), str(chosen.seconds)]
        subprocess.run([*mpirun, *task], check=True)
        waited, spent = json.loads(result.read_text(encoding="utf-8"))
    return {
        "seconds_33_ranks_over_1": statistics.median(row["ratio"] for row in rows),
        "memory_gib": held / 2**30,
        "idle_core_share": spent / waited,
    }, rows


def _seconds(command: list[str]) -> float:
    began = time.perf_counter()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    return time.perf_counter() - began


def _memory(command: list[str]) -> int:
    import psutil

    job = psutil.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    most = 0
    while job.poll() is None:
        held = 0
        for process in job.children(recursive=True):
            with suppress(psutil.Error):  # the process may have ended
                held += process.memory_full_info().pss
        most = max(most, held)
        time.sleep(0.2)
    return most


def wait(result: Path, seconds: float) -> None:
    """Let the last rank compute while all others wait for it; rank 0 writes the wait and their CPU time. Collective."""
    import numpy as np

    from fedkd_mpi.communication.launch import open_world

    world = open_world()
    world.barrier()
    began, cpu = time.perf_counter(), time.process_time()
    busy = world.mpi_rank == world.world_size - 1
    while busy and time.perf_counter() - began < seconds:
        pass
    world.barrier()
    waited, spent = time.perf_counter() - began, 0.0 if busy else time.process_time() - cpu
    everyone = world.allgather(np.array([spent])).view(np.float64)
    if world.is_root:
        result.write_text(json.dumps([waited, float(everyone.sum())]), encoding="utf-8")
    world.close()


if __name__ == "__main__":
    wait(Path(sys.argv[1]), float(sys.argv[2]))
