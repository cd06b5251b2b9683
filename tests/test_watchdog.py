"""Processes that hang, as seen by the watchdog."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest
from sessions import SMALL, Job, rounds_in

from fedkd_mpi import costlog
from fedkd_mpi.place import Place
from fedkd_mpi.sections import Watchdog as Settings
from fedkd_mpi.watchdog import Watchdog
from fedkd_mpi.world import World

PROGRAM = Path(__file__).with_name("stalling.py")


def all_ready(folder: Path, n: int) -> bool:
    return all((folder / f"ready-{rank}").exists() for rank in range(n))


@pytest.mark.parametrize(("what", "rank"), [("barrier", 2), ("barrier", 0), ("bulk", 1)])
def test_a_stopped_process_is_named_and_then_the_job_ended(
    what: str, rank: int, mpi_vendor: str, tmp_path: Path
) -> None:
    with Job(3, PROGRAM, 3, 6, tmp_path, what, mpi=mpi_vendor, folder=tmp_path) as job:
        job.until(lambda: all_ready(tmp_path, 3))
        pid = job.pids()[rank]
        time.sleep(1)  # until it has told of a turn
        os.kill(pid, signal.SIGSTOP)
        assert job.wait() != 0
        warning, end = (
            next(line for line in job.text.splitlines() if word in line)
            for word in ("watchdog: warning:", "watchdog: the run is ended after")
        )
        for line in (warning, end):
            assert re.findall(r"rank (\d) on", line) == [str(rank)]
            assert f"(process {pid})" in line
            assert "no sign of life" in line
            assert re.search(r"in round \d+, (training, client 7|uplink)", line)
        assert not job.pids()
    assert (tmp_path / "interrupted").read_text() == f"by rank {0 if rank else 1}"
    assert f"rank {rank} on" in (tmp_path / "warning").read_text()


def test_native_code_that_holds_the_interpreter_is_named(mpi_vendor: str, tmp_path: Path) -> None:
    with Job(2, PROGRAM, 3, 6, tmp_path, "native", mpi=mpi_vendor, folder=tmp_path) as job:
        assert job.wait() != 0
        assert re.search(r"warning: rank 1 on .*has not arrived, for \d+ s in round 200, training, client 7", job.text)
        assert not job.pids()


def test_a_run_that_hangs_ends_interrupted_with_its_rounds(tmp_path: Path, mpi_vendor: str) -> None:
    log = tmp_path / "hangs.h5"
    arguments = ("-m", "fedkd_mpi.run", *SMALL, "rounds=100000", "--output", log)
    limits = ("watchdog.seconds=8", "watchdog.abort_seconds=20")
    with Job(3, *arguments, *limits, mpi=mpi_vendor, folder=tmp_path) as job:
        job.until(lambda: rounds_in(log) > 2)
        job.signal(1, signal.SIGSTOP)
        assert job.wait() == 1 or mpi_vendor == "mpich"
        assert "watchdog: the run is ended" in job.text
    with costlog.open(log) as opened:
        assert opened.attrs["status"] == "interrupted"
        assert opened.rounds_completed > 2
        assert any(text.startswith("watchdog: rank 1 on") for text in opened["events"]["message"])


def observer(places: list[Place], idle: list[float]) -> tuple[Watchdog, float]:
    """Return rank 0's watchdog as if it had seen these places, unchanged for so many seconds, with a limit of 10 s."""
    watchdog = Watchdog(World(), Settings(seconds=10))
    watchdog.world.hostnames = ["node"] * len(places)
    now = time.monotonic()
    from fedkd_mpi.watchdog import Sighting

    watchdog._seen = [
        Sighting(place, pid=1, heard=now, changed=now - seconds) for place, seconds in zip(places, idle, strict=True)
    ]
    return watchdog, now


@pytest.mark.parametrize(
    ("places", "idle", "missing"),
    [
        ([Place(arrived=5, waiting=1), Place(arrived=4)], [11, 11], [1]),
        ([Place(arrived=5, waiting=1), Place(arrived=4)], [9, 11], []),  # not waited for that long yet
        ([Place(arrived=5, waiting=1), Place(arrived=4)], [100, 9], []),  # slow, but it goes from client to client
        ([Place(arrived=5), Place(arrived=5)], [100, 100], []),  # all compute: nobody waits
        ([Place(arrived=5, waiting=1), Place(arrived=4), Place(arrived=4)], [11, 11, 3], [1]),
        ([Place(arrived=4), Place(arrived=5, waiting=1)], [30, 30], [0]),  # the server itself
        ([Place(arrived=5, waiting=1), Place(arrived=5, waiting=1)], [30, 30], [0, 1]),  # MPI hangs
        ([Place(arrived=4, waiting=1), Place(arrived=4), Place(arrived=5, waiting=1)], [30, 30, 30], [1]),
    ],
)
def test_who_is_missing(places: list[Place], idle: list[float], missing: list[int]) -> None:
    watchdog, now = observer(places, idle)
    assert watchdog._missing(now, silent=[]) == missing
