"""local_training: the speed-up of local training by a setting such as stack=8 or compile=true.

    python -m benchmarks local_training [--config digits.yaml] [--repetitions 9] --setting stack=8 [KEY=VALUE ...]

One process trains all clients of a round, alternately without and with the setting; nothing is exchanged. `speed_up` is
the ratio of seconds without and with the setting, the median over repetitions. Compilation and other work at first use
is not counted. KEY=VALUE applies to both.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from fedkd_mpi.config import load as configuration


def run(arguments: list[str]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Train alternately and compare."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks local_training")
    parser.add_argument("--config", type=Path, default=Path("digits.yaml"))
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--setting", required=True, metavar="KEY=VALUE", help="the setting to compare")
    parser.add_argument("overrides", nargs="*")
    chosen = parser.parse_intermixed_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        ways = [
            Way(chosen.config, [*chosen.overrides, *extra], Path(folder) / f"{len(extra)}.h5")
            for extra in ([], [chosen.setting])
        ]
        for way in ways:
            way.seconds()  # builds, compiles, allocates
        rows = [
            {"repetition": index, "plain": ways[0].seconds(), chosen.setting: ways[1].seconds()}
            for index in range(chosen.repetitions)
        ]
    return {"speed_up": statistics.median(row["plain"] / row[chosen.setting] for row in rows)}, rows


class Way:
    """A run whose clients are trained for a round, as often as asked."""

    def __init__(self, config: Path, overrides: list[str], log: Path):
        from fedkd_mpi.communication.world import SingleProcessWorld
        from fedkd_mpi.simulation.session import begin

        settings = configuration.load(config, overrides)
        self.run = begin(settings, SingleProcessWorld(), log, overwrite=True).simulation

    def seconds(self) -> float:
        """Train every client once."""
        from fedkd_mpi.simulation.rounds import stack_groups

        trainer, exchange = self.run.trainer, self.run.exchange
        assert exchange is not None  # FedKD exchanges
        replica = exchange.replica
        began = time.perf_counter()
        for clients in stack_groups(self.run, range(self.run.config.num_clients)):
            if len(clients) > 1:
                trainer.train_stack(clients, 0, replica, evaluate=False)
            else:
                trainer.train(clients[0], 0, replica, evaluate=False)
        if self.run.device != "cpu":
            import torch

            torch.cuda.synchronize()
        return time.perf_counter() - began
