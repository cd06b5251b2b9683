"""local_training: how much faster clients train by other settings (stack=8, compile=true) than one after another.

    python -m benchmarks local_training [--config digits.yaml] [--repetitions 9] --setting stack=8 [KEY=VALUE ...]

One process trains all clients of a round by the configuration as it is and with the setting, in turns; nothing is
exchanged. `speed_up` is the median over repetitions of the one's seconds over the other's; what is compiled or built at
first use is not counted. KEY=VALUE holds for both.
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
    """Train in turns and compare."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks local_training")
    parser.add_argument("--config", type=Path, default=Path("digits.yaml"))
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--setting", required=True, metavar="KEY=VALUE", help="what is compared with the configuration")
    parser.add_argument("overrides", nargs="*")
    chosen = parser.parse_intermixed_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        ways = [
            _Way(chosen.config, [*chosen.overrides, *extra], Path(folder) / f"{len(extra)}.h5")
            for extra in ([], [chosen.setting])
        ]
        for way in ways:
            way.seconds()  # builds, compiles, allocates
        rows = [
            {"repetition": index, "plain": ways[0].seconds(), chosen.setting: ways[1].seconds()}
            for index in range(chosen.repetitions)
        ]
    return {"speed_up": statistics.median(row["plain"] / row[chosen.setting] for row in rows)}, rows


class _Way:
    def __init__(self, config: Path, overrides: list[str], log: Path):
        from fedkd_mpi.communication.world import World
        from fedkd_mpi.simulation.session import begin

        settings = configuration.load(config, overrides)
        self.run = begin(settings, World(), log, overwrite=True).simulation

    def seconds(self) -> float:
        """Train every client once."""
        from fedkd_mpi.simulation.rounds import stack_groups

        bench, replica = self.run.trainer, self.run.replica
        began = time.perf_counter()
        for clients in stack_groups(self.run, range(self.run.config.num_clients)):
            if len(clients) > 1:
                bench.train_stack(clients, 0, replica, evaluate=False)
            else:
                bench.train(clients[0], 0, replica, evaluate=False)
        if self.run.device != "cpu":
            import torch

            torch.cuda.synchronize()
        return time.perf_counter() - began
