"""Runs that are asked to stop: by a signal to any process, a file, the clock; and those that are ended at once."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import pytest
from command import Command
from mpirun import run
from sessions import SMALL, Job, checkpoints, rounds_in

from fedkd_mpi import costlog
from fedkd_mpi.communication.world import SingleProcessWorld
from fedkd_mpi.config.load import load
from fedkd_mpi.errors import UserError
from fedkd_mpi.fault_tolerance.stopping import StopRequests, slurm_end
from fedkd_mpi.run import main
from fedkd_mpi.simulation.boundary import CLOSING

ENDLESS = ("-m", "fedkd_mpi.run", *SMALL, "rounds=100000", "checkpoint.every=100000", "--output")


def assert_stopped_well(log: Path, reason: str) -> None:
    with costlog.open(log) as opened:
        assert opened.attrs["status"] == "interrupted"
        messages = opened["events"]["message"]
        assert any(f"stopped after {opened.rounds_completed} rounds: {reason}" in text for text in messages)
        assert checkpoints(log)[0].name == f"round-{opened.rounds_completed:06d}"


@pytest.mark.parametrize(("number", "rank"), [(signal.SIGTERM, 1), (signal.SIGUSR1, 0)])
def test_a_signal_at_any_rank_stops_all_with_a_checkpoint(
    number: signal.Signals, rank: int, mpi_vendor: str, tmp_path: Path
) -> None:
    log = tmp_path / "endless.h5"
    with Job(3, *ENDLESS, log, mpi=mpi_vendor, folder=tmp_path) as job:
        job.until(lambda: rounds_in(log) > 0)
        job.signal(rank, number)
        assert job.wait() == 75
        assert f"{number.name} at rank {rank} on" in job.text
        assert f"--resume {log}" in job.text
    assert_stopped_well(log, f"{number.name} at rank {rank}")


def test_the_first_interrupt_stops_well_and_the_second_at_once(mpi_vendor: str, tmp_path: Path) -> None:
    log = tmp_path / "endless.h5"
    slow = ("local.epochs=null", "local.steps=1000000000")  # a round that never ends
    with Job(2, *ENDLESS, log, *slow, mpi=mpi_vendor, folder=tmp_path) as job:
        job.until(log.exists)
        time.sleep(1)
        job.signal(1, signal.SIGINT)
        time.sleep(1)
        assert job.process.poll() is None
        job.signal(1, signal.SIGINT)
        assert job.wait() != 0
        assert job.text.count("second SIGINT, the run is ended at once") == 1
    assert costlog.read(log)["attrs"]["status"] == "interrupted"


@pytest.mark.parametrize(("number", "least"), [(signal.SIGTERM, 0), (signal.SIGHUP, 0), (signal.SIGUSR1, 1)])
def test_a_signal_during_the_start_is_not_forgotten_and_kills_nobody(
    number: signal.Signals, least: int, tmp_path: Path
) -> None:
    """A warning of the end of the job lets a round be played: each start gets on."""
    log = tmp_path / "endless.h5"
    with Job(1, *ENDLESS, log, folder=tmp_path) as job:
        job.until(lambda: catches(job.process.pid, number))
        assert not log.exists()
        job.process.send_signal(number)
        time.sleep(0.1)
        job.process.send_signal(number)
        assert job.wait() == 75
    assert_stopped_well(log, f"{number.name} at rank 0")
    assert rounds_in(log) == least


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    caught = next((line.split()[1] for line in status.splitlines() if line.startswith("SigCgt")), "0")
    return bool(int(caught, 16) >> (number - 1) & 1)


def test_one_process_obeys_ctrl_c(tmp_path: Path) -> None:
    log = tmp_path / "endless.h5"
    with Job(1, *ENDLESS, log, folder=tmp_path) as job:
        job.until(lambda: rounds_in(log) > 0)
        job.signal(0, signal.SIGINT)
        assert job.wait() == 75
    assert_stopped_well(log, "SIGINT at rank 0")


def test_a_stop_file_beside_the_log_stops_and_keeps_from_starting(tmp_path: Path, in_process: Command) -> None:
    log, stop = tmp_path / "endless.h5", tmp_path / "STOP"
    with Job(1, *ENDLESS, log, folder=tmp_path) as job:
        job.until(lambda: rounds_in(log) > 0)
        stop.touch()
        assert job.wait() == 75
    assert_stopped_well(log, f"the file {stop}")
    for arguments in (["--resume", log, "--trust-log"], [*SMALL, "--output", tmp_path / "new.h5"]):
        code, _, said = in_process(main, *arguments)
        assert code == 2
        assert f"the file {stop} asks" in said
        assert len(said.splitlines()) == 1


def test_a_round_that_would_not_fit_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_END_TIME", "1000.0")
    monkeypatch.setattr(time, "time", lambda: 900.0)
    stop = StopRequests(SingleProcessWorld(), tmp_path / "log.h5", 50.0, slurm_end())
    assert stop.reason(49.9) is None
    assert stop.reason(50.1) == "another round would not end before time_limit (50 s)"
    stop = StopRequests(SingleProcessWorld(), tmp_path / "log.h5", None, slurm_end())
    assert stop.reason(99.9) is None
    assert stop.reason(100.1) == "another round would not end before the end of the Slurm job"


def test_a_warning_of_the_time_limit_does_not_kill_a_run_that_is_done(tmp_path: Path) -> None:
    worker = Path(__file__).parents[1] / "helpers" / "worker_late_signal.py"
    assert run([sys.executable, worker], cwd=tmp_path).returncode == 0


def test_a_run_ends_within_its_time_limit(tmp_path: Path) -> None:
    log = tmp_path / "limited.h5"
    assert main([*SMALL, "rounds=100000", "time_limit=4", "--output", str(log)]) == 75
    with costlog.open(log) as opened:
        assert opened["rounds"]["seconds_total"].sum() < 4 - CLOSING
        assert "another round would not end before time_limit (4 s)" in opened["events"]["message"][-1]
    assert_stopped_well(log, "another round")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90.5", 90.5), ("01:30:00", 5400), ("8:00:00", 28800), ("2-12:00:00", 216000), ("null", None)],
)
def test_time_limits_read_as_slurm_writes_them(text: str, seconds: float | None) -> None:
    assert load(overrides=[f"time_limit={text}"]).time_limit == seconds


@pytest.mark.parametrize("text", ["soon", "0", "-5", "1:2:3:4:x"])
def test_other_time_limits_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="time_limit"):
        load(overrides=[f"time_limit={text}"])
