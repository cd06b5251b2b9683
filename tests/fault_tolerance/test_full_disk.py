"""A full disk and a read-only one, each a small tmpfs: what is said, with which exit code, and what is left."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import Command
from mpirun import find, how_to_install, mpirun, run
from sessions import SMALL, assert_same_run, checkpoints, rounds_in

from fedkd_mpi import costlog
from fedkd_mpi.run import main

RUN = ("-m", "fedkd_mpi.run")
LARGE = (*SMALL, "rounds=6", "checkpoint.every=1", "teacher.hidden=[1024]")  # some 0.6 MB of state per client


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    result = run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder])
    if result.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {result.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def remount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", disk], check=True)


def test_a_full_disk_costs_nothing_but_the_round(disk: Path, tmp_path: Path, in_process: Command) -> None:
    if find("openmpi") is None:
        pytest.skip(how_to_install("openmpi"))
    log, whole = disk / "full.h5", tmp_path / "whole.h5"
    result = mpirun(2, *RUN, *LARGE, "--output", log)
    assert result.returncode == 1
    lines = [line for line in result.stderr.splitlines() if line.startswith("fedkd_mpi: rank")]
    assert len(lines) == 1
    assert "cannot write the checkpoint" in lines[0]
    assert "No space left on device; the checkpoint after round" in lines[0]
    done = rounds_in(log)
    assert 0 < done < 6
    assert costlog.read(log)["attrs"]["status"] == "interrupted"
    assert checkpoints(log)[0].name == f"round-{done - 1:06d}"
    remount(disk, "size=64m")
    assert mpirun(2, *RUN, "--resume", log, "--trust-log").returncode == 0
    assert in_process(main, *LARGE, "--output", whole)[0] == 0
    assert_same_run(whole, log)


def test_a_read_only_disk_is_said_at_once(disk: Path, in_process: Command) -> None:
    log = disk / "log.h5"
    assert in_process(main, *SMALL, "rounds=3", "time_limit=0.001", "--output", log)[0] == 75
    remount(disk, "ro")
    kept = {path: path.read_bytes() for path in disk.rglob("*") if path.is_file()}
    for arguments in (["--resume", log, "--trust-log"], [*SMALL, "--output", disk / "new.h5"]):
        code, _, said = in_process(main, *arguments)
        assert code == 2
        assert len(said.splitlines()) == 1
        assert "Read-only file system" in said
    assert {path: path.read_bytes() for path in disk.rglob("*") if path.is_file()} == kept
