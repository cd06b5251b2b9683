"""Two runs that would write the same log: the second is refused, and nobody waits for a run that was killed."""

from __future__ import annotations

import errno
import fcntl
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command import Command
from locked import locked
from mpirun import PATIENCE, clean_environment, mpirun
from sessions import SMALL, Job, rounds_in

from fedkd_mpi import costlog
from fedkd_mpi.errors import UserError
from fedkd_mpi.fault_tolerance.log_lock import Lock, reserve
from fedkd_mpi.run import main

RUN = ("-m", "fedkd_mpi.run")


def test_a_second_resume_of_a_log_is_refused_and_harms_nothing(
    mpi_vendor: str, tmp_path: Path, in_process: Command
) -> None:
    log = tmp_path / "one.h5"
    assert in_process(main, *SMALL, "rounds=100000", "time_limit=0.001", "--output", log)[0] == 75  # after a round
    before = rounds_in(log)
    with Job(1, *RUN, "--resume", log, "--trust-log", "time_limit=null", folder=tmp_path) as job:
        job.until(lambda: rounds_in(log) > before)
        for arguments in (["--resume", log, "--trust-log"], [*SMALL, "--output", log, "--overwrite"]):
            second = mpirun(2, *RUN, *arguments, mpi=mpi_vendor)
            assert second.returncode == 2
            said = [line for line in second.stderr.splitlines() if line.startswith("fedkd_mpi: ")]
            assert len(said) == 1
            assert f"process {job.pids()[0]} on " in said[0]
            assert f"is writing the log {log}" in said[0]
        job.signal(0, signal.SIGUSR1)
        assert job.wait() == 75
    found = costlog.read(log)
    assert found["rounds"]["round"].tolist() == list(range(len(found["rounds"]["round"])))
    assert not log.with_name("one.h5.lock").exists()


def test_two_fresh_runs_with_one_output_do_not_meet(tmp_path: Path) -> None:
    log = tmp_path / "new" / "one.h5"
    command = [sys.executable, *RUN, *SMALL, "rounds=2", "--output", str(log)]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=clean_environment()) for _ in range(2)]
    said = [process.communicate(timeout=PATIENCE)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2]
    (refusal,) = (text for process, text in zip(both, said, strict=True) if process.returncode == 2)
    assert len(refusal.splitlines()) == 1
    assert str(log) in refusal
    assert costlog.read(log)["attrs"]["status"] == "completed"


def test_runs_that_begin_in_one_second_have_names_of_their_own(tmp_path: Path) -> None:
    name = tmp_path / "new" / "digits-20261129-120000.h5"
    with locked(name) as first:
        name.with_stem(f"{name.stem}-2").touch()
        name.with_name(f"{name.stem}-3.h5.checkpoints").mkdir()
        with reserve(name) as lock:
            assert lock.log.name == "digits-20261129-120000-4.h5"
        first.kill()
        first.wait(PATIENCE)
    with reserve(name) as lock:
        assert lock.log == name


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    log = tmp_path / "one.h5"
    with locked(log) as holder:
        with pytest.raises(UserError, match=rf"process {holder.pid} on .* is writing the log {log}"), Lock(log) as lock:
            lock.take()
        holder.kill()
        holder.wait(PATIENCE)
    with Lock(log) as lock:
        lock.take()


def test_without_locks_it_says_so_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with Lock(tmp_path / "one.h5") as lock:
        lock.take()
    assert capsys.readouterr().err.splitlines() == [
        f"fedkd_mpi: warning: no locks in {tmp_path} (No locks available): make sure that no other run writes one.h5"
    ]
    assert not list(tmp_path.iterdir())
