"""portable_bits: what code that every processor with AVX2 has costs in local training.

    python -m benchmarks portable_bits [--config digits.yaml] [--repetitions 9] [KEY=VALUE ...]

Two processes train all clients of a round in turn, one with the settings of portable_bits=true and one without;
nothing is exchanged. `portable_over_native` is the ratio of their processor time, the median over repetitions. What
happens at first use is not counted.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.local_training import Way
from fedkd_mpi.simulation.portable_bits import SETTINGS


def run(arguments: list[str]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Train in turn and compare."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks portable_bits")
    parser.add_argument("--config", type=Path, default=Path("digits.yaml"))
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("overrides", nargs="*")
    chosen = parser.parse_intermixed_args(arguments)
    others = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    words = [str(chosen.config), *chosen.overrides]
    with _Worker(words, others) as native, _Worker(words, {**others, **SETTINGS}) as portable:
        rows = [
            {"repetition": index, "native": native.seconds(), "portable": portable.seconds()}
            for index in range(chosen.repetitions)
        ]
    return {"portable_over_native": statistics.median(row["portable"] / row["native"] for row in rows)}, rows


class _Worker:
    """A process that trains when it is asked to."""

    def __init__(self, words: list[str], environment: Mapping[str, str]):
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, *words],
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> _Worker:
        self.seconds()  # builds, allocates
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def seconds(self) -> float:
        """Let it train every client once; return the seconds of processor time."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())


def work(config: Path, overrides: list[str]) -> None:
    """Train every client once for each line of stdin, and print the seconds of processor time."""
    with tempfile.TemporaryDirectory() as folder:
        way = Way(config, overrides, Path(folder, "log.h5"))
        for _ in sys.stdin:
            began = time.process_time()
            way.seconds()
            print(time.process_time() - began, flush=True)


if __name__ == "__main__":
    work(Path(sys.argv[1]), sys.argv[2:])
