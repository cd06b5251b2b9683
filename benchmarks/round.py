"""round: the time of a round relative to its local training, and the time of a naive round relative to it.

    python -m benchmarks round [--ranks 3] [--config fashion_mnist.yaml] [--rounds 4] [--naive] [--apart]
                               [KEY=VALUE ...]

In every round the clients are trained twice, in alternating order: once as the run command does (codec, MPI, log,
evaluation), and once by the bare training loop on the same clients, assigned to the same processes in the same way.
`round_over_training` is the median over rounds of (seconds of the round) / (seconds of the bare training on the slowest
process). With --naive, `naive_over_round` compares with benchmarks/naive.py on as many threads as processes train
(ranks - 1). With --apart, `apart_over_together` compares bare training of every process's own clients with training by
the work queue of the node (balance=true).
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
from typing import TYPE_CHECKING, Any

from fedkd_mpi.config import load as configuration
from fedkd_mpi.config.schema import Config

if TYPE_CHECKING:
    from fedkd_mpi.client.client import Client
    from fedkd_mpi.scheduling.schedule import Schedule


def run(arguments: list[str]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Start the measured rounds under mpirun and return their times."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks round")
    parser.add_argument("--ranks", type=int, default=3)
    parser.add_argument("--config", type=Path, default=Path("fashion_mnist.yaml"))
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--naive", action="store_true", help="also time the naive implementation")
    parser.add_argument("--apart", action="store_true", help="also time training of every process's own clients")
    parser.add_argument("overrides", nargs="*")
    chosen = parser.parse_intermixed_args(arguments)
    overrides = [*chosen.overrides, f"rounds={chosen.rounds}"]
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "round.json"
        how = "apart" if chosen.apart else "together"
        task = [sys.executable, "-m", "benchmarks.round", str(result), str(chosen.config), how, *overrides]
        launch = ["mpirun", "-n", str(chosen.ranks), *task] if chosen.ranks > 1 else task
        subprocess.run(launch, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        rows = json.loads(result.read_text(encoding="utf-8"))
        if chosen.naive:
            threads = max(chosen.ranks - 1, 1)
            task = [sys.executable, "-m", "benchmarks.naive", str(result), str(chosen.config), str(threads), *overrides]
            subprocess.run(task, check=True, env=os.environ | {"OMP_NUM_THREADS": str(threads)})
            naive = json.loads(result.read_text(encoding="utf-8"))
            rows = [row | {"naive": seconds} for row, seconds in zip(rows, naive, strict=True)]
    steady = rows[1:]  # the first round warms up caches and allocators
    claims = {"round_over_training": statistics.median(row["round_over_training"] for row in steady)}
    if chosen.apart:
        claims["apart_over_together"] = statistics.median(row["apart"] / row["bare"] for row in steady)
    if chosen.naive:
        whole, naive = (statistics.median(row[key] for row in steady) for key in ("whole", "naive"))
        claims["naive_over_round"] = naive / whole
    return claims, rows


def measure(config: Config, result: Path, *, apart: bool) -> None:
    """Run all rounds and time the bare training and the whole round of each; rank 0 writes the rows. Collective."""
    import numpy as np

    from fedkd_mpi.client.client import Client
    from fedkd_mpi.common.stopwatch import Stopwatch
    from fedkd_mpi.communication.launch import open_world
    from fedkd_mpi.costlog import Writer
    from fedkd_mpi.scheduling.schedule import OwnClients
    from fedkd_mpi.scheduling.state_cache import ClientStateCache
    from fedkd_mpi.simulation.accounting import Accounting
    from fedkd_mpi.simulation.rounds import play_round, stack_groups
    from fedkd_mpi.simulation.session import begin

    world = open_world()
    log = result.with_suffix(".h5")
    session = begin(config, world, log, overwrite=True)
    simulation, writer = session.simulation, session.writer
    assert simulation.exchange is not None  # FedKD exchanges
    replica = simulation.exchange.replica
    rows: list[dict[str, Any]] = []
    logged: list[dict[str, Any]] = []
    accounting = Accounting(simulation, writer, logged.append)
    states = ClientStateCache(config.clients_in_memory, simulation.device, len(simulation.clients))
    alone = OwnClients(simulation.clients, states)

    def train(groups: list[list[Client]], schedule: Schedule, round_index: int) -> float:
        copies = {
            c.id: Client(c.id, c.train_indices, c.test_indices, {n: t.clone() for n, t in c.copy().items()})
            for group in groups
            for c in group
        }
        world.barrier()
        began = time.perf_counter()
        for group in schedule.each(groups):
            for client in group:
                simulation.trainer.train(copies[client.id], round_index, replica, evaluate=False)
        return time.perf_counter() - began

    def bare(round_index: int) -> float:
        groups = stack_groups(simulation, range(config.num_clients))
        return train(groups, simulation.schedule, round_index)

    def own(round_index: int) -> float:
        return train([[client] for client in simulation.clients.values()], alone, round_index)

    def whole(round_index: int) -> float:
        world.barrier()
        began = time.perf_counter()
        play_round(simulation, accounting, round_index, Stopwatch())
        return time.perf_counter() - began

    for round_index in range(config.rounds):
        world.barrier()
        seconds = {}
        # Bare training is first in even rounds; in odd rounds it repeats the round from the state at its end.
        for part in (bare, whole) if round_index % 2 == 0 else (whole, bare):
            seconds[part.__name__] = part(round_index)
        slowest = world.allgather(np.array([seconds["bare"], own(round_index) if apart else 0.0])).view(np.float64)
        if writer:
            trained, of_own = slowest.max(axis=0).tolist()
            row = {"round": round_index, "round_over_training": seconds["whole"] / trained}
            rows.append(row | {"whole": seconds["whole"], "bare": trained} | ({"apart": of_own} if apart else {}))
    accounting.settle()
    for row, of_round in zip(rows, logged, strict=False):
        row |= {name.removeprefix("seconds_"): value for name, value in of_round.items() if name.startswith("seconds_")}
    if isinstance(writer, Writer):
        writer.finish("completed")
        result.write_text(json.dumps(rows), encoding="utf-8")
    world.close()


if __name__ == "__main__":
    target, file, training, *changes = sys.argv[1:]
    measure(configuration.load(Path(file), changes), Path(target), apart=training == "apart")
