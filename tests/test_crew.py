"""The processes of a node train its clients together: who is free works, and nobody else can tell who it was."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import COMMAND, Command
from mpirun import find, mpirun
from sessions import SMALL, Job, assert_same_run, rounds_in

from fedkd_mpi import costlog
from fedkd_mpi.config import load
from fedkd_mpi.crew import seats
from fedkd_mpi.run import main
from fedkd_mpi.shared_memory import FOLDER
from fedkd_mpi.world import World

FEEDBACK = "compression.error_feedback=ef"


def logged(folder: Path, *arguments: str, ranks: int = 3, mpi: str = "openmpi") -> dict[str, Any]:
    """Run the command and return its log."""
    path = folder / f"{'-'.join(arguments)}-{ranks}.h5".replace("/", "")
    done = mpirun(ranks, *COMMAND, *arguments, "--output", path, mpi=mpi, cwd=folder, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    return costlog.read(path)


def test_bytes_and_log_are_those_of_processes_that_train_their_own(mpi_vendor: str, tmp_path: Path) -> None:
    """Also who sent what, and how many bytes every process gave to MPI and got from it."""
    crew, apart = (
        logged(tmp_path, FEEDBACK, f"balance={balance}", ranks=4, mpi=mpi_vendor) for balance in ("true", "false")
    )
    assert set(crew["uplink"]["mpi_rank"].tolist()) == {1, 2, 3}
    for table in ("rounds", "uplink", "downlink", "training", "clients", "mpi"):
        for name, values in crew[table].items():
            if not name.startswith("seconds"):
                first = 1 if table == "mpi" and not name.startswith("payload") else 0  # a crew's start takes bytes too
                values, other = values[first:], apart[table][name][first:]
                np.testing.assert_array_equal(values, other, err_msg=f"{table}/{name}", strict=True)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="with one core one process trains everything")
def test_a_slow_process_leaves_its_clients_to_others(tmp_path: Path) -> None:
    """Rank 1 waits half a second whenever it takes a client up."""
    if find("openmpi") is None:
        pytest.skip("Open MPI is not installed")
    slow = ["num_clients=12", "rounds=2", "task=worker_parts:Slow", "evaluate.every=2"]
    seconds = {
        balance: logged(tmp_path, *slow, f"balance={balance}")["training"]["seconds_train"].reshape(2, 12)
        for balance in ("true", "false")
    }
    held_up = {balance: (taken > 0.5).sum(axis=1) for balance, taken in seconds.items()}
    assert (held_up["false"] == 6).all()
    assert held_up["true"].sum() < 6


def test_a_fault_in_somebody_elses_client_is_told_once_with_its_place(mpi_vendor: str, tmp_path: Path) -> None:
    for settings, ending in (([], 1), (["on_nonfinite=skip"], 0)):
        arguments = [*COMMAND, "task=worker_parts:Poisoned", *settings, "--output", f"{ending}.h5"]
        done = mpirun(3, *arguments, mpi=mpi_vendor, cwd=tmp_path, timeout=120)
        assert done.returncode == ending, done.stderr
        if ending:
            (line,) = [line for line in done.stderr.splitlines() if line.startswith("fedkd_mpi:")]
            assert "round 0, client 2, layer teacher.layers.0.weight" in line
        else:
            log = costlog.read(tmp_path / "0.h5")
            assert log["rounds"]["skipped_clients"].tolist() == [1, 1, 1]
            assert all("teacher.layers.0.weight" in text for text in log["events"]["message"])


def test_a_killed_process_leaves_no_memory_behind_and_the_run_goes_on(
    mpi_vendor: str, tmp_path: Path, in_process: Command
) -> None:
    """On another number of processes, to the bits of a run that nobody disturbed."""
    before = set(FOLDER.glob("fedkd-clients-*"))
    settings = [*SMALL, FEEDBACK, "rounds=40", "evaluate.every=100"]
    whole, killed = tmp_path / "whole.h5", tmp_path / "killed.h5"
    assert in_process(main, *settings, "--output", whole)[0] == 0
    with Job(3, "-m", "fedkd_mpi.run", *settings, "--output", killed, mpi=mpi_vendor, folder=tmp_path) as job:
        job.until(lambda: rounds_in(killed) > 4)
        job.signal(2, signal.SIGKILL)
        assert job.wait() != 0
        assert not set(FOLDER.glob("fedkd-clients-*")) - before
    with Job(4, "-m", "fedkd_mpi.run", "--resume", killed, mpi=mpi_vendor, folder=tmp_path) as job:
        assert job.wait() == 0
    assert_same_run(whole, killed)


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("threads", "cores", "expected"),
    [
        (1, [{0, 1, 2, 3}] * 3, [1, 2]),
        (1, [{0, 1}, {0}, {0}], [1]),
        (1, [{0}, {0}, {1}], [1, 2]),
        (2, [{0, 1, 2}] * 3, [1]),
        (2, [{0, 1, 2, 3}] * 3, [1, 2]),
        (8, [{0, 1}] * 3, [1]),
    ],
)
def test_as_many_train_as_find_cores_for_their_threads(
    world: World, monkeypatch: pytest.MonkeyPatch, threads: int, cores: list[set[int]], expected: list[int]
) -> None:
    if world.world_size != 3:
        pytest.skip("three processes")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: cores[world.mpi_rank])
    monkeypatch.setattr("torch.get_num_threads", lambda: threads)
    assert seats(world, [1, 2]) == expected


def test_it_can_be_switched_off_for_a_run_that_goes_on() -> None:
    from fedkd_mpi.config import with_care

    assert with_care(load(), ["balance=false"]).balance is False
