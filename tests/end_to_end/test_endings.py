"""A run that breaks: one message that names the place, the job ends, the log keeps what was completed."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command import COMMAND
from mpirun import mpirun, run

from fedkd_mpi import costlog


def assert_interrupted(path: Path, rounds: int) -> None:
    log = costlog.read(path)
    assert log["attrs"]["status"] == "interrupted"
    assert log["rounds"]["round"].tolist() == list(range(rounds))
    assert len(log["uplink"]["client"]) == 4 * rounds


def test_a_client_that_raises_ends_the_job_with_one_message(mpi_vendor: str, tmp_path: Path):
    arguments = [*COMMAND, "task=worker_parts:Breaking", "balance=false", "--output", "own.h5"]
    done = mpirun(3, *arguments, mpi=mpi_vendor, cwd=tmp_path)
    assert done.returncode == 1
    assert re.findall(r"fedkd_mpi: rank (\d) on \S+, round (\d), client (\d)", done.stderr) == [("2", "2", "2")]
    assert done.stderr.count("ZeroDivisionError: no such thing") == 1
    assert_interrupted(tmp_path / "own.h5", 1)


def test_a_client_that_is_not_finite_ends_the_job_with_its_layer(tmp_path: Path):
    arguments = [*COMMAND, "task=worker_parts:Poisoned", "--output", "own.h5"]
    done = run([sys.executable, *arguments], cwd=tmp_path)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert re.match(
        r"fedkd_mpi: rank 0 on \S+, round 1, client 2, layer teacher\.layers\.0\.weight: .* not finite", line
    )
    assert_interrupted(tmp_path / "own.h5", 0)


def test_a_full_disk_ends_the_run_in_one_line_and_keeps_the_log(tmp_path: Path):
    mount = shutil.which("mount")
    disk = tmp_path / "disk"
    disk.mkdir()
    small = ["-t", "tmpfs", "-o", "size=540k", "tmpfs", str(disk)]
    if not mount or subprocess.run([mount, *small], capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs is not allowed here")
    try:
        arguments = [
            *COMMAND,
            "rounds=200",
            "evaluate.every=200",
            "checkpoint.every=null",
            "local.epochs=null",
            "local.steps=1",
            "--output",
            str(disk / "own.h5"),
        ]
        done = run([sys.executable, *arguments], cwd=tmp_path)
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert re.match(r"fedkd_mpi: rank 0 on \S+, round \d+: cannot write .*No space left on device", line)
        kept = int(re.search(r"the (\d+) earlier rounds are safe", line)[1])
        log = costlog.read(disk / "own.h5")
        assert kept > 0
        assert log["rounds"]["round"].tolist() == list(range(kept))
    finally:
        subprocess.run(["umount", str(disk)], check=True)
