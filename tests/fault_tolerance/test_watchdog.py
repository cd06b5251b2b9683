"""Processes that hang, as seen by the watchdog."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mpirun import run
from sessions import SMALL, Job, rounds_in

from fedkd_mpi import costlog
from fedkd_mpi.communication.datagrams import sign
from fedkd_mpi.communication.process_status import ProcessStatus
from fedkd_mpi.communication.world import SingleProcessWorld
from fedkd_mpi.config.sections import WatchdogConfig as Settings
from fedkd_mpi.fault_tolerance.watchdog import Watchdog, _parse

PROGRAM = Path(__file__).parents[1] / "helpers" / "stalling.py"
AT_EXIT = PROGRAM.with_name("worker_watchdog_at_exit.py")
STALLS = {"barrier 2": ("barrier", 2), "barrier 0": ("barrier", 0), "bulk 1": ("bulk", 1)}  # what, and who is stopped


@dataclass(frozen=True)
class Ended:
    """What is left of a job: `pid` is that of the stopped process."""

    code: int
    text: str
    pid: int
    left: dict[int, int]
    folder: Path


def all_ready(folder: Path, n: int) -> bool:
    return all((folder / f"ready-{rank}").exists() for rank in range(n))


@pytest.fixture(scope="module")
def hung(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Ended]]:
    """The jobs of an MPI that hang: "run", "native" and STALLS, all at once, for they mostly wait."""
    found: dict[str, dict[str, Ended]] = {}

    def of(mpi: str) -> dict[str, Ended]:
        if mpi not in found:
            found[mpi] = hang(mpi, {name: tmp_path_factory.mktemp("hung") for name in ("run", "native", *STALLS)})
        return found[mpi]

    return of


def hang(mpi: str, folders: dict[str, Path]) -> dict[str, Ended]:
    """Start all jobs, stop the process of each that is to be stopped, and wait for their ends."""
    log = folders["run"] / "hangs.h5"
    run = ("-m", "fedkd_mpi.run", *SMALL, "rounds=100000", "--output", log)
    limits = ("watchdog.seconds=8", "watchdog.abort_seconds=20")
    stalls = {name: folders[name] for name in STALLS}
    with ExitStack() as stack:
        jobs = {"run": stack.enter_context(Job(3, *run, *limits, mpi=mpi, folder=folders["run"]))}
        jobs["run"].until(lambda: rounds_in(log) > 2)
        pids = {"native": 0, "run": jobs["run"].pids()[1]}
        jobs["run"].signal(1, signal.SIGSTOP)
        for name, folder in stalls.items():
            job = Job(3, PROGRAM, 3, 6, folder, STALLS[name][0], mpi=mpi, folder=folder)
            jobs[name] = stack.enter_context(job)
        native = folders["native"]
        jobs["native"] = stack.enter_context(Job(2, PROGRAM, 3, 6, native, "native", mpi=mpi, folder=native))
        for name, folder in stalls.items():
            jobs[name].until(partial(all_ready, folder, 3))
            pids[name] = jobs[name].pids()[STALLS[name][1]]
        time.sleep(1)  # until each has told of a turn
        for name in stalls:
            os.kill(pids[name], signal.SIGSTOP)
        codes = {name: job.wait() for name, job in jobs.items()}
        return {name: Ended(codes[name], job.text, pids[name], job.pids(), folders[name]) for name, job in jobs.items()}


@pytest.mark.parametrize("stall", STALLS)
def test_a_stopped_process_is_named_and_then_the_job_ended(
    stall: str, mpi_vendor: str, hung: Callable[[str], dict[str, Ended]]
) -> None:
    job, rank = hung(mpi_vendor)[stall], STALLS[stall][1]
    assert job.code != 0
    warning, end = (
        next(line for line in job.text.splitlines() if word in line)
        for word in ("watchdog: warning:", "watchdog: the run is ended after")
    )
    for line in (warning, end):
        assert re.findall(r"rank (\d) on", line) == [str(rank)]
        assert f"(process {job.pid})" in line
        assert "has sent nothing for" in line
        assert re.search(r"in round \d+, (training, client 7|uplink)", line)
    assert not job.left
    assert (job.folder / "interrupted").read_text() == f"by rank {0 if rank else 1}"
    assert f"rank {rank} on" in (job.folder / "warning").read_text()


def test_native_code_that_holds_the_interpreter_is_named(
    mpi_vendor: str, hung: Callable[[str], dict[str, Ended]]
) -> None:
    job = hung(mpi_vendor)["native"]
    assert job.code != 0
    assert re.search(r"warning: rank 1 on .*has not arrived, for \d+ s in round 201, training, client 7", job.text)
    assert not job.left


def test_a_run_that_hangs_ends_interrupted_with_its_rounds(
    mpi_vendor: str, hung: Callable[[str], dict[str, Ended]]
) -> None:
    job = hung(mpi_vendor)["run"]
    assert job.code == 1 or mpi_vendor == "mpich"
    assert "watchdog: the run is ended" in job.text
    with costlog.open(job.folder / "hangs.h5") as opened:
        assert opened.attrs["status"] == "interrupted"
        assert opened.rounds_completed > 2
        assert any(text.startswith("watchdog: rank 1 on") for text in opened["events"]["message"])


def observer(places: list[ProcessStatus], idle: list[float]) -> tuple[Watchdog, float]:
    """Return rank 0's watchdog as if it had seen these places, unchanged for so many seconds, with a limit of 10 s."""
    watchdog = Watchdog(SingleProcessWorld(), Settings(seconds=10))
    watchdog.world.hostnames = ["node"] * len(places)
    now = time.monotonic()
    from fedkd_mpi.fault_tolerance.watchdog import Sighting

    watchdog._seen = [
        Sighting(status, pid=1, heard=now, changed=now - seconds) for status, seconds in zip(places, idle, strict=True)
    ]
    return watchdog, now


@pytest.mark.parametrize(
    ("places", "idle", "missing"),
    [
        ([ProcessStatus(arrived=5, waiting=1), ProcessStatus(arrived=4)], [11, 11], [1]),
        ([ProcessStatus(arrived=5, waiting=1), ProcessStatus(arrived=4)], [9, 11], []),  # not waited for that long yet
        # Slow, but it goes from client to client.
        ([ProcessStatus(arrived=5, waiting=1), ProcessStatus(arrived=4)], [100, 9], []),
        ([ProcessStatus(arrived=5), ProcessStatus(arrived=5)], [100, 100], []),  # all compute: nobody waits
        ([ProcessStatus(arrived=5, waiting=1), ProcessStatus(arrived=4), ProcessStatus(arrived=4)], [11, 11, 3], [1]),
        ([ProcessStatus(arrived=4), ProcessStatus(arrived=5, waiting=1)], [30, 30], [0]),  # the server itself
        ([ProcessStatus(arrived=5, waiting=1), ProcessStatus(arrived=5, waiting=1)], [30, 30], [0, 1]),  # MPI hangs
        (
            [ProcessStatus(arrived=4, waiting=1), ProcessStatus(arrived=4), ProcessStatus(arrived=5, waiting=1)],
            [30, 30, 30],
            [1],
        ),
    ],
)
def test_who_is_missing(places: list[ProcessStatus], idle: list[float], missing: list[int]) -> None:
    watchdog, now = observer(places, idle)
    assert watchdog._missing(now, silent=[]) == missing


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "[]",
        "[" * 900,
        "[1, 2, 3]",
        '[9, 1, [0, "a", null, 0, 0, 0]]',
        '[-1, 1, [0, "a", null, 0, 0, 0]]',
        '[1.5, 1, [0, "a", null, 0, 0, 0]]',
        "[1, 1, [0, {}, null, 0, 0, 0]]",
        "\xff",
    ],
)
def test_a_malformed_datagram_is_ignored(text: str):
    assert _parse(text.encode("latin-1"), 3) is None
    assert _parse(None, 3) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@given(JSON)
def test_whatever_json_a_datagram_holds_it_is_ignored_or_in_bounds(value: object):
    told = _parse(json.dumps(value).encode(), 3)
    assert told is None or (0 <= told[0] < 3 and isinstance(told[3], ProcessStatus))


def test_the_thread_goes_on_whatever_arrives_and_old_datagrams_say_nothing():
    world = SimpleNamespace(
        world_size=2,
        mpi_rank=0,
        is_root=True,
        one_node=True,
        hostnames=["a", "a"],
        key=bytes(32),
        status=ProcessStatus(),
    )
    world.addresses = ["127.0.0.1"] * 2
    world.allgather = lambda own: np.tile(np.frombuffer(own.tobytes(), np.uint8), (2, 1))
    watchdog = Watchdog(world, Settings(seconds=40, abort_seconds=80))
    (_, port), *_ = watchdog._observers
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def tell(datagram: bytes) -> None:
        sender.sendto(datagram, ("127.0.0.1", port))

    def body(number: int, pid: int) -> bytes:
        return json.dumps([1, number, pid, [4, "train", None, 5, 1, 3]]).encode()

    for junk in (b"", b"x" * 5000, b"{}", sign(bytes(32), b"[" * 900), sign(b"another key", body(9, 666))):
        tell(junk)
    tell(sign(world.key, body(7, 70)))
    tell(sign(world.key, body(6, 60)))  # an older one, sent again
    seen, began = watchdog._seen[1], time.monotonic()
    while seen.number < 7 and time.monotonic() - began < 60:
        time.sleep(0.01)
    tell(sign(world.key, body(8, 80)))
    while seen.number < 8 and time.monotonic() - began < 60:
        time.sleep(0.01)
    assert [watchdog.trained(round_index) for round_index in (3, 4)] == [0, 3]
    watchdog.stop()
    sender.close()
    assert (seen.number, seen.pid, seen.status) == (8, 80, ProcessStatus(4, "train", None, 5, 1, 3))


def test_a_datagram_of_the_run_is_understood():
    body = b'[2, 9, 7, [4, "train", null, 5, 1, 3]]'
    assert _parse(body, 3) == (2, 9, 7, ProcessStatus(4, "train", None, 5, 1, 3))
    assert _parse(body, 2) is None


@pytest.mark.parametrize("how", ["stop", "leave"])
def test_a_thread_inside_torch_does_not_outlive_the_interpreter(how: str):
    done = run([sys.executable, AT_EXIT, how])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
