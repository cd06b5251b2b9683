"""The processes of a node train its clients together: who is free works, and nobody else can tell who it was."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import Command, one_after_another
from mpirun import find, mpirun
from sessions import SMALL, Job, assert_same_run, rounds_in

from fedkd_mpi import costlog
from fedkd_mpi.communication.shared_memory import FOLDER
from fedkd_mpi.communication.world import World
from fedkd_mpi.config.load import load
from fedkd_mpi.run import main
from fedkd_mpi.scheduling.work_queue import ranks_with_cores

FEEDBACK = "compression.error_feedback=ef"


def logged(
    folder: Path, settings: Sequence[str], *arguments: str, ranks: int = 3, mpi: str = "openmpi"
) -> list[dict[str, Any]]:
    """Run the command with one setting after another; return the logs."""
    paths = {setting: folder / f"{setting}.h5" for setting in settings}
    runs = ([*arguments, setting, "--output", path] for setting, path in paths.items())
    done = mpirun(ranks, *one_after_another(*runs), mpi=mpi, cwd=folder, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    return [costlog.read(path) for path in paths.values()]


def test_bytes_and_log_are_those_of_processes_that_train_their_own(mpi_vendor: str, tmp_path: Path) -> None:
    """Also who sent what, and how many bytes every process gave to MPI and got from it."""
    settings = ["balance=false", "balance=true", "clients_in_memory=1"]
    arguments = [FEEDBACK, "evaluate.global_teachers=true"]
    apart, *queued = logged(tmp_path, settings, *arguments, ranks=4, mpi=mpi_vendor)
    assert set(apart["uplink"]["mpi_rank"].tolist()) == {1, 2, 3}
    for work_queue in queued:
        for table in ("rounds", "uplink", "downlink", "training", "clients", "mpi"):
            for name, values in work_queue[table].items():
                if not name.startswith("seconds"):
                    # In the first round the start of a work queue takes some bytes of its own.
                    first = 1 if table == "mpi" and not name.startswith("payload") else 0
                    values, other = values[first:], apart[table][name][first:]
                    np.testing.assert_array_equal(values, other, err_msg=f"{table}/{name}", strict=True)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="with one core one process trains everything")
def test_a_slow_process_leaves_its_clients_to_others(tmp_path: Path) -> None:
    """Rank 1 waits half a second whenever it takes a client up."""
    if find("openmpi") is None:
        pytest.skip("Open MPI is not installed")
    slow = ["num_clients=12", "rounds=2", "task=worker_parts:Slow", "evaluate.every=2"]
    logs = logged(tmp_path, ["balance=true", "balance=false"], *slow)
    seconds = (log["training"]["seconds_train"].reshape(2, 12) for log in logs)
    work_queue, apart = ((taken > 0.5).sum(axis=1) for taken in seconds)
    assert (apart == 6).all()
    assert work_queue.sum() < 6


def test_a_fault_in_somebody_elses_client_is_told_once_with_its_place(mpi_vendor: str, tmp_path: Path) -> None:
    """Or, where it may be skipped, in every round; the run that skips comes first, for the other ends the job."""
    runs = (["task=worker_parts:Poisoned", *end] for end in (["on_nonfinite=skip", "--output=0.h5"], ["--output=1.h5"]))
    done = mpirun(3, *one_after_another(*runs), mpi=mpi_vendor, cwd=tmp_path, timeout=200)
    assert done.returncode == 1, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("fedkd_mpi:")]
    assert "round 1, client 2, layer teacher.layers.0.weight" in line
    log = costlog.read(tmp_path / "0.h5")
    assert log["attrs"]["status"] == "completed"
    assert log["rounds"]["skipped_clients"].tolist() == [1, 1, 1]
    # The test set is poisoned too, and on a busy machine a client may be late.
    skipped = [text for text in log["events"]["message"] if text.startswith("update skipped")]
    assert len(skipped) == 3
    assert all("teacher.layers.0.weight" in text for text in skipped)
    assert (tmp_path / "1.h5").exists()


def test_a_killed_process_leaves_no_memory_behind_and_the_run_goes_on(
    mpi_vendor: str, tmp_path: Path, in_process: Command
) -> None:
    """On another number of processes, to the bits of a run that nobody disturbed."""
    before = set(FOLDER.glob("fedkd-clients-*"))
    settings = [*SMALL, FEEDBACK, "rounds=20", "evaluate.every=100"]
    whole, killed = tmp_path / "whole.h5", tmp_path / "killed.h5"
    assert in_process(main, *settings, "--output", whole)[0] == 0
    with Job(3, "-m", "fedkd_mpi.run", *settings, "--output", killed, mpi=mpi_vendor, folder=tmp_path) as job:
        job.until(lambda: rounds_in(killed) > 2)
        job.signal(2, signal.SIGKILL)
        assert job.wait() != 0
        assert not set(FOLDER.glob("fedkd-clients-*")) - before
    with Job(4, "-m", "fedkd_mpi.run", "--resume", killed, "--trust-log", mpi=mpi_vendor, folder=tmp_path) as job:
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
    assert ranks_with_cores(world, [1, 2]) == expected


def test_it_can_be_switched_off_for_a_run_that_goes_on() -> None:
    from fedkd_mpi.config.load import with_care

    assert with_care(load(), ["balance=false"]).balance is False
