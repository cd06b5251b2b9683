"""Collectives, waits, counters, shared arrays and faults, under Open MPI and MPICH."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mpirun import PATIENCE, find, mpirun, run

from fedkd_mpi.communication.launch import World
from fedkd_mpi.errors import UserError

TESTS = Path(__file__).parents[1]
WORKER = TESTS / "helpers" / "worker_world.py"


def case(mpi: str, n: int, name: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a case of worker_world.py on n processes."""
    return mpirun(n, WORKER, name, mpi=mpi, **options)


def test_marked_tests_on_three_processes(mpi_vendor: str) -> None:
    """The tests below (and other files') that need several processes pass on three."""
    marked = [path for path in sorted(TESTS.rglob("test_*.py")) if "pytest.mark.mpi\n" in path.read_text("utf-8")]
    assert {"test_world.py", "test_exchange.py"} <= {path.name for path in marked}
    arguments = ["-m", "pytest", "--with-mpi", "-q", "-m", "mpi", "-p", "no:cacheprovider", *marked]
    done = mpirun(3, *arguments, mpi=mpi_vendor, cwd=TESTS.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(re.findall(r"\d+ passed", done.stdout)) == 3
    assert "failed" not in done.stdout


@pytest.mark.mpi
@pytest.mark.parametrize("limit", [2**31 - 1, 1, 4, 7])
def test_gather_keeps_order_and_bytes_whatever_one_call_can_count(world: World, limit: int) -> None:
    world.count_limit = limit
    counts = [(5 * rank) % 7 for rank in range(world.world_size)]
    own = np.full(counts[world.mpi_rank], world.mpi_rank, np.uint8)
    for announced in (counts, None):
        whole = world.gather(own, announced, sleeping=True)
        if world.is_root:
            np.testing.assert_array_equal(whole, np.repeat(np.arange(world.world_size), counts))
        else:
            assert whole is None


@pytest.mark.mpi
def test_gather_refuses_another_length_than_announced(world: World) -> None:
    with pytest.raises(ValueError, match="announced 3"):
        world.gather(np.zeros(2, np.uint8), [3] * world.world_size)


@pytest.mark.mpi
@pytest.mark.parametrize("size", [0, 1, 3, 100_000])  # 100_000: longer than what an MPI sends before it is asked for
def test_all_get_the_bytes_of_all_when_they_meet(world: World, size: int) -> None:
    counts = [8 * size * rank for rank in range(world.world_size)]
    own = np.full(size * world.mpi_rank, world.mpi_rank)
    everyone = world.allgather_small(own, counts).view(np.int64)
    np.testing.assert_array_equal(everyone, np.repeat(range(world.world_size), [count // 8 for count in counts]))
    rows = world.allgather(np.full((2, size), world.mpi_rank, np.uint8))
    np.testing.assert_array_equal(rows, np.repeat(range(world.world_size), 2 * size).reshape(world.world_size, -1))


@pytest.mark.mpi
def test_to_meet_with_another_length_than_announced_is_refused(world: World) -> None:
    with pytest.raises(ValueError, match="announced 3"):
        world.allgather_small(np.zeros(1, np.uint8), [3] * world.world_size)


@pytest.mark.mpi
def test_rank_0_lets_all_go_and_waits_for_nobody(world: World) -> None:
    turns = range(5)
    buffers = [np.full(3, turn * world.is_root) for turn in turns]
    gone_on = Path(tempfile.gettempdir(), f"fedkd-{world.key.hex()}")
    end = time.monotonic() + PATIENCE / 2
    while not world.is_root and not gone_on.exists() and time.monotonic() < end:
        time.sleep(0.01)
    for buffer in buffers:
        world.broadcast_small(buffer)
    if world.is_root:
        gone_on.touch()
    assert time.monotonic() < end, "rank 0 waited until the others gave up waiting for it"
    np.testing.assert_array_equal(buffers, [[turn] * 3 for turn in turns])
    world.barrier()
    gone_on.unlink(missing_ok=True)


@pytest.mark.mpi
@pytest.mark.parametrize("limit", [2**31 - 1, 3])
def test_broadcast_fills_any_contiguous_array(world: World, limit: int) -> None:
    world.count_limit = limit
    truth = np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3)
    buffer = truth.copy() if world.is_root else np.zeros_like(truth)
    world.broadcast(buffer)
    np.testing.assert_array_equal(buffer, truth)
    with pytest.raises(ValueError, match="contiguous"):
        world.broadcast(buffer.T)


@pytest.mark.mpi
def test_the_lowest_rank_with_an_error_is_heard_by_all(world: World) -> None:
    assert world.first_message(None) is None
    assert world.first_message(f"größer {world.mpi_rank}" if world.mpi_rank else None) == "größer 1"

    def read() -> str:
        if world.mpi_rank == world.world_size - 1:
            raise UserError("no such folder")
        return "data"

    with pytest.raises(UserError, match="no such folder"):
        world.collectively(read)
    assert world.collectively(lambda: world.mpi_rank) == world.mpi_rank


@pytest.mark.mpi
def test_shared_arrays_are_one_read_only_copy(world: World) -> None:
    mine = {"x": np.arange(10, dtype=np.uint8), "y": np.ones((3, 4)), "none": np.empty((0, 2), np.float32)}
    arrays, meta = world.share(mine, {"scale": 0.5}) if world.is_node_leader else world.share()
    assert meta == {"scale": 0.5}
    assert not any(array.flags.writeable or array.ctypes.data % 64 for array in arrays.values())
    for name, array in mine.items():
        np.testing.assert_array_equal(arrays[name], array, strict=True)
    world.barrier()
    if world.is_node_leader:
        arrays["y"].flags.writeable = True
        arrays["y"][2, 3] = 7
    world.barrier()
    assert arrays["y"][2, 3] == 7


@pytest.mark.mpi
def test_a_node_without_room_refuses_on_all_processes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    if world.is_node_leader:
        monkeypatch.setattr("fedkd_mpi.communication.shared_memory.RESERVE", 2**60)
    with pytest.raises(UserError, match=r"shared memory, /dev/shm on .* free: enlarge it"):
        world.share({"x": np.ones(10)} if world.is_node_leader else None)


@pytest.mark.mpi
def test_every_process_knows_its_place(world: World) -> None:
    assert world.hostnames == [world.hostname] * world.world_size
    assert (world.local_rank, world.node_size) == (world.mpi_rank, world.world_size)
    assert world.is_node_leader == world.is_root == (world.mpi_rank == 0)
    assert "MPI" in world.library


@pytest.mark.mpi
@pytest.mark.parametrize("wait", ["barrier", "broadcast_small"])
def test_waiting_costs_nearly_no_cpu(world: World, wait: str) -> None:
    world.take_counters()
    used = time.process_time()
    last = world.mpi_rank == (world.world_size - 1 if wait == "barrier" else 0)
    if last:
        time.sleep(2.0)
    getattr(world, wait)()
    assert time.process_time() - used < 0.2
    assert (world.take_counters().seconds_waited > 1.0) != last


@pytest.mark.mpi
def test_nothing_but_time_depends_on_wakeups(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world.wakeup, "notify", lambda *ranks: None)
    for value in range(3):
        assert world.allgather(np.array([value])).view(np.int64)[:, 0].tolist() == [value] * world.world_size
        told = np.array([value * world.is_root])
        world.broadcast_small(told)
        assert told.tolist() == [value]


def test_open_mpi_itself_counts_the_same_bytes(tmp_path: Path) -> None:
    """The monitoring layer writes what went from process to process (E), and by communicator what the root of a
    broadcast (O2A) and of a gather (A2O) and all in an allgather (A2A) moved; what opening and closing a world take is
    known from a run that does nothing else."""
    if find("openmpi") is None:
        pytest.skip("only Open MPI has a monitoring layer")
    monitored = []
    for name, what in (("idle", "open and close"), ("busy", "count")):
        settings = {"enable": "2", "enable_output": "3", "filename": tmp_path / name}
        options = [word for key, value in settings.items() for word in ("--mca", f"pml_monitoring_{key}", str(value))]
        done = case("openmpi", 3, what, options=options)
        assert done.returncode == 0, done.stderr
        moved: Counter[tuple[str, str]] = Counter()
        for path in tmp_path.glob(f"{name}.*.prof"):
            for line in path.read_text(encoding="utf-8").splitlines():
                fields = line.split("\t")
                if fields[0] == "D":
                    communicator = fields[1]
                elif fields[0] in ("O2A", "A2O", "A2A"):
                    moved[communicator, fields[0]] += int(fields[2].split()[0])
                elif fields[0] == "E":
                    moved["E", f"{fields[1]} to {fields[2]}"] += int(fields[3].split()[0])
        monitored.append(moved)
    moved = monitored[1] - monitored[0]
    counted = np.array([line.split()[1:5] for line in done.stdout.splitlines() if line.startswith("COUNTED")], int)
    sent, received, payload_sent, payload_received = counted.sum(axis=0)
    assert moved["fedkd payload", "A2O"] == 3 * (1001 + 1002)
    assert moved["fedkd payload", "O2A"] == 3 * 2 * 70_001
    assert payload_sent == payload_received == sum(n for (name, _), n in moved.items() if name == "fedkd payload")
    sizes = 3 + 1  # of the gathers that announce none and of agree(): 8 bytes a process
    assert [moved["E", f"{rank} to 0"] for rank in (1, 2)] == [3 * 50 * rank + 8 * sizes for rank in (1, 2)]
    assert [moved["E", f"0 to {rank}"] for rank in (1, 2)] == [3 * (50 + 100 + 7) + 3 * 8 * sizes] * 2
    assert moved["E", "1 to 2"] == moved["E", "2 to 1"] == 0
    assert sent == received == moved.total()


# For each case of the worker: the ranks one of which may speak, and whether rank 0 gets to close the log.
FAULTS = {
    "root": ("0", True),
    "several": ("12", True),
    "all": ("012", True),
    "long": ("1", True),
    "root busy": ("12", False),
    "in a blocking call": ("1", False),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_ends_the_job_with_one_message(mpi_vendor: str, name: str) -> None:
    speakers, closes_log = FAULTS[name]
    done = case(mpi_vendor, 3, name)
    assert done.returncode == 1
    assert re.findall(r"FAULT on (\d): boom", done.stderr) in [[rank] for rank in speakers], done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.count("LOG CLOSED") == closes_log


def test_a_log_that_cannot_be_closed_does_not_hide_the_fault(mpi_vendor: str) -> None:
    done = case(mpi_vendor, 3, "log not closed")
    assert done.returncode == 1
    assert done.stderr.count("FAULT on 1: boom") == done.stderr.count("disk full") == 1


@pytest.mark.parametrize("death", ["exit", "kill"])
def test_a_silent_death_ends_the_job(mpi_vendor: str, death: str) -> None:
    done = case(mpi_vendor, 3, death)
    assert done.returncode != 0


def test_an_agreed_error_ends_all_with_its_code(mpi_vendor: str) -> None:
    done = case(mpi_vendor, 3, "agreed error")
    assert done.returncode == 2
    assert done.stderr.count("label 10 of 10 classes") == 1


def test_one_process_needs_no_launcher() -> None:
    done = run([sys.executable, WORKER, "alone"])
    assert (done.returncode, done.stdout, done.stderr) == (1, "LOG CLOSED\n", "over\n")


def test_a_timeout_leaves_no_process_behind(mpi_vendor: str) -> None:
    name = f"left-behind-{mpi_vendor}"
    with pytest.raises(TimeoutError):
        mpirun(2, "-c", "import time; time.sleep(600)", name, mpi=mpi_vendor, timeout=2)
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not any(name.encode() in command for command in commands)
