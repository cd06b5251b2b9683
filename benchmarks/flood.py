"""flood: the slow-down of a run if another process on its node sends datagrams to all its sockets.

    python -m benchmarks flood [--ranks 3] [--rounds 20] [--rate 2000] [--repetitions 3] [KEY=VALUE ...]

Pairs of runs of digits are compared, one undisturbed and one flooded with `rate` datagrams per second (random bytes to
one socket after another, at most 20,000 in total). `flooded_over_quiet` is the ratio of the median seconds per round,
the median over the pairs.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from fedkd_mpi import costlog

MOST = 20_000  # datagrams per run


def run(arguments: list[str]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Start the pairs of runs and return their times."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks flood")
    parser.add_argument("--ranks", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--rate", type=int, default=2000)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("overrides", nargs="*")
    chosen = parser.parse_args(arguments)
    how = [*chosen.overrides, f"rounds={chosen.rounds}", "evaluate.every=1000", "checkpoint.every=null"]
    rows = []
    for repetition in range(chosen.repetitions):
        quiet, _ = _seconds(chosen.ranks, how, 0)
        flooded, sent = _seconds(chosen.ranks, how, chosen.rate)
        rows.append({"repetition": repetition, "quiet": quiet, "flooded": flooded, "datagrams": sent})
    return {"flooded_over_quiet": statistics.median(row["flooded"] / row["quiet"] for row in rows)}, rows


def _seconds(ranks: int, how: list[str], rate: int) -> tuple[float, int]:
    """Return the median seconds per round without the first and last round, and the number of datagrams sent."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "run.h5"
        task = [sys.executable, "-m", "fedkd_mpi.run", *how, "--output", str(log)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        job = subprocess.Popen(["mpirun", "-n", str(ranks), *task], stdout=subprocess.DEVNULL, env=environment)
        sent = 0
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            junk = os.urandom(200)
            while job.poll() is None:
                for port in list(_ports(job.pid)) if rate and sent < MOST else ():
                    for _ in range(max(rate // 100, 1)):
                        with suppress(OSError):
                            stranger.sendto(junk, ("127.0.0.1", port))
                            sent += 1
                    time.sleep(0.01)
                time.sleep(0.01)
        if job.returncode:
            raise SystemExit(f"the run ended with {job.returncode}")
        return float(np.median(costlog.read(log)["rounds"]["seconds_total"][1:-1])), sent


def _ports(pid: int) -> Iterator[int]:
    """Yield the UDP ports of a job's processes."""
    import psutil

    with suppress(psutil.Error):
        for process in psutil.Process(pid).children(recursive=True):
            with suppress(psutil.Error):
                yield from (each.laddr.port for each in process.net_connections("udp4"))
