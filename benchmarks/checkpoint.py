"""checkpoint: the share of a run's time for writing checkpoints at the default interval.

    python -m benchmarks checkpoint [--ranks 3] [--config digits.yaml] [--rounds 20] [KEY=VALUE ...]

Every boundary between two rounds is timed, with and without a checkpoint. `checkpoint_share_of_run` is the time of all
boundaries divided by that of the whole run (rounds and boundaries) on rank 0, which waits for the slowest process; it
is the median over `repeats` runs.
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
from pathlib import Path
from typing import Any

from fedkd_mpi.config import load as configuration
from fedkd_mpi.config.schema import Config


def run(arguments: list[str]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Start the runs under mpirun and return their times."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks checkpoint")
    parser.add_argument("--ranks", type=int, default=3)
    parser.add_argument("--config", type=Path, default=Path("digits.yaml"))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("overrides", nargs="*")
    chosen = parser.parse_args(arguments)
    overrides = [*chosen.overrides, f"rounds={chosen.rounds}"]
    rows = []
    for repeat in range(chosen.repeats):
        with tempfile.TemporaryDirectory() as folder:
            result = Path(folder) / "checkpoint.json"
            task = [sys.executable, "-m", "benchmarks.checkpoint", str(result), str(chosen.config), *overrides]
            launch = ["mpirun", "-n", str(chosen.ranks), *task] if chosen.ranks > 1 else task
            subprocess.run(launch, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
            rows.append({"repeat": repeat, **json.loads(result.read_text(encoding="utf-8"))})
    return {"checkpoint_share_of_run": statistics.median(row["share"] for row in rows)}, rows


def measure(config: Config, result: Path) -> None:
    """Run all rounds and time the boundaries between them; rank 0 writes the row. Collective."""
    from fedkd_mpi.communication.launch import open_world
    from fedkd_mpi.fault_tolerance.stopping import StopRequests
    from fedkd_mpi.simulation.accounting import Accounting
    from fedkd_mpi.simulation.boundary import Boundary
    from fedkd_mpi.simulation.rounds import simulate
    from fedkd_mpi.simulation.session import begin

    world = open_world()
    log = result.with_suffix(".h5")
    session = begin(config, world, log, overwrite=True)
    accounting = Accounting(session.simulation, session.writer, lambda row: None)
    boundary = Boundary(
        session.simulation, session.checkpoints, StopRequests(world, log, None), None, accounting.settle, session.best
    )
    saving: list[float] = []
    other: list[float] = []

    def timed(done: int) -> str | None:
        world.barrier()
        before, began = boundary.saved, time.perf_counter()
        reason = boundary(done)
        world.barrier()  # a checkpoint is complete when the slowest process has written its part
        (other if boundary.saved == before else saving).append(time.perf_counter() - began)
        return reason

    world.barrier()
    began = time.perf_counter()
    simulate(session.simulation, accounting, timed)
    seconds = time.perf_counter() - began
    if session.writer:
        session.writer.finish("completed")
        size = sum(file.stat().st_size for file in session.checkpoints.path(config.rounds).iterdir())
        row = {
            "rounds": config.rounds,
            "checkpoints": len(saving),
            "checkpoint_bytes": size,
            "seconds_per_checkpoint": statistics.median(saving),
            "seconds_per_boundary_without": statistics.median(other),
            "seconds_run": seconds,
            "share": (sum(saving) + sum(other)) / seconds,
        }
        result.write_text(json.dumps(row), encoding="utf-8")
    world.close()


if __name__ == "__main__":
    target, file, *changes = sys.argv[1:]
    measure(configuration.load(Path(file), changes), Path(target))
