"""kill -9 of a random rank at a random moment, resumed on a random number of ranks until the run is done.

FEDKD_KILLS=100 python -m pytest tests/fault_tolerance/test_kills.py      the long form; FEDKD_SEED gives other moments
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from command import Command
from mpirun import LIBRARIES, find
from sessions import SMALL, Job, assert_same_run, bits, kill, rounds_in

from fedkd_mpi import costlog
from fedkd_mpi.run import main

KILLS = int(os.environ.get("FEDKD_KILLS", "4"))
SEED = int(os.environ.get("FEDKD_SEED", "0"))
ROUNDS = 8
ARGUMENTS = ("-m", "fedkd_mpi.run")
CONFIGURATION = (*SMALL, f"rounds={ROUNDS}", "local.epochs=20")


@pytest.mark.slow
def test_kills_leave_no_trace(tmp_path: Path, in_process: Command) -> None:
    rng = np.random.default_rng(SEED)
    vendors = [vendor for vendor in LIBRARIES if find(vendor)]
    if not vendors:
        pytest.skip("no MPI is installed")
    reference = tmp_path / "reference.h5"
    assert in_process(main, *CONFIGURATION, "--output", reference)[0] == 0
    expected = costlog.read(reference)
    kills = runs = 0
    seconds = 5.0  # that a session is likely to last
    while kills < KILLS:
        runs += 1
        log = tmp_path / f"killed-{runs}.h5"
        code = None
        while code is None:
            ranks = int(rng.integers(1, 4))
            mpi = str(rng.choice(vendors)) if ranks > 1 else None
            how = ("--resume", log, "--trust-log") if log.exists() else (*CONFIGURATION, "--output", log)
            began = time.monotonic()
            with Job(ranks, *ARGUMENTS, *how, mpi=mpi, folder=tmp_path) as job:
                if kills < KILLS and ended_by_kill(job, rng, log, ranks, seconds):
                    kills += 1
                    print(f"kill {kills}: {ranks} ranks, {mpi}, after {rounds_in(log)} rounds", flush=True)
                else:
                    code = job.wait()
                    assert code == 0, job.text
                    seconds = time.monotonic() - began
                assert_readable(log, expected)
        assert_same_run(reference, log)
    assert kills >= KILLS


def ended_by_kill(job: Job, rng: np.random.Generator, log: Path, ranks: int, seconds: float) -> bool:
    """Kill a rank at a random moment of the session, or of a random round; False where the job was done before."""
    victim = int(rng.integers(ranks))
    moment = float(rng.uniform(0, seconds))
    if rng.random() < 0.5:  # start-up takes much of a session: half the kills are in the rounds and checkpoints
        done = int(rng.integers(ROUNDS))
        while rounds_in(log) < done and job.process.poll() is None:
            time.sleep(0.005)
        moment = float(rng.uniform(0, 0.5))
    time.sleep(moment)
    pids = job.pids()
    while not pids and job.process.poll() is None:  # the launcher has not started them yet
        pids = job.pids()
    if victim not in pids:
        return False
    kill(pids[victim], signal.SIGKILL)
    return job.wait() != 0


def assert_readable(log: Path, expected: dict) -> None:
    """Check that every completed round that the log holds is that of the uninterrupted run."""
    if not log.exists():
        return
    found = costlog.read(log)["rounds"]
    count = len(found["round"])
    for name, values in found.items():
        if not name.startswith("seconds_"):
            assert bits(values) == bits(expected["rounds"][name][:count]), name
