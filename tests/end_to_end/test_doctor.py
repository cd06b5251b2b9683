"""The doctor on good and bad ground."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from command import Command
from mpirun import mpirun, run
from sessions import SMALL

from fedkd_mpi import doctor
from fedkd_mpi.communication.world import SingleProcessWorld
from fedkd_mpi.config.load import load
from fedkd_mpi.doctor import ERROR, OK, WARNING, room
from fedkd_mpi.run import main

DOCTOR = ("-m", "fedkd_mpi.doctor")


def statuses(text: str) -> dict[str, str]:
    return dict(re.findall(r"^│ (\S[^│]*?) +│ (ok|warning|error) ", text, re.MULTILINE))


def test_alone_all_is_well(tmp_path: Path, in_process: Command) -> None:
    code, said, errors = in_process(doctor.main, *SMALL, "--output", tmp_path / "own.h5")
    assert code == 0, errors
    found = statuses(said)
    found.pop("leftovers", None)  # of other jobs on this machine
    assert found.keys() == {"MPI", "cores", "GPU", "shared memory", "HDF5", "disk"}
    assert not list(tmp_path.iterdir())


def test_too_many_threads_are_an_error(mpi_vendor: str, tmp_path: Path) -> None:
    cores = len(os.sched_getaffinity(0))
    arguments = (*SMALL, f"threads_per_rank={cores}", "--output", tmp_path / "own.h5")
    result = mpirun(2, *DOCTOR, *arguments, mpi=mpi_vendor)
    found = statuses(result.stdout)
    assert found["MPI"] == found["shared memory"] == found["bandwidth"] == found["HDF5"] == OK
    assert result.stdout.count("bandwidth") == 1
    if cores > 1:
        assert result.returncode == 1
        assert found["cores"] == ERROR
        assert f"2 process(es) x {cores} thread(s) on {cores} core(s)" in result.stdout


def test_copies_of_rank_0_of_1_are_noticed(tmp_path: Path) -> None:
    """Srun without a PMI starts n processes that each believe to be alone."""
    env = {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "4"}
    result = run(["python", *DOCTOR, "--output", tmp_path / "own.h5"], env=env)
    assert result.returncode == 1
    assert statuses(result.stdout)["MPI"] == ERROR
    assert "srun --mpi=pm" in result.stdout


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path, in_process: Command) -> None:
    (tmp_path / "file").touch()
    code, said, _ = in_process(doctor.main, *SMALL, "--output", tmp_path / "file" / "own.h5")
    assert code == 1
    assert statuses(said)["HDF5"] == ERROR


def test_the_disk_is_compared_with_the_checkpoints(tmp_path: Path) -> None:
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    assert room(tmp_path, 0).status == (OK if free > 2 * doctor.SCARCE else WARNING)
    assert room(tmp_path / "not" / "yet", free - doctor.SCARCE // 2).status == WARNING
    assert room(tmp_path, 2 * free).status == ERROR


def test_the_estimate_covers_the_checkpoints_of_a_run(tmp_path: Path, in_process: Command) -> None:
    from fedkd_mpi.simulation.setup import load_data, prepare

    log = tmp_path / "own.h5"
    large = [*SMALL, "rounds=2", "cohort_size=null", "teacher.hidden=[256]", "student.hidden=[64]"]
    assert in_process(main, *large, "checkpoint.every=1", "--output", log)[0] == 0
    written = sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors"))
    config, world = load(overrides=large), SingleProcessWorld()
    estimate = doctor.checkpoint_bytes(prepare(config, world, load_data(config, world)))
    assert written < estimate < 3 * written


def test_a_run_says_only_what_is_wrong(tmp_path: Path, in_process: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    cores = len(os.sched_getaffinity(0))
    monkeypatch.setattr(os, "cpu_count", lambda: cores + 1)  # of which this job has fewer
    arguments = (*SMALL, "rounds=1", "--output")
    good = run(["python", "-m", "fedkd_mpi.run", *arguments, tmp_path / "good.h5"])
    assert (good.returncode, good.stderr) == (0, "")
    code, _, said = in_process(main, *arguments, tmp_path / "bad.h5", f"threads_per_rank={cores + 1}")
    assert code == 0
    (line,) = said.splitlines()
    assert f"{cores + 1} thread(s) on {cores} core(s): set threads_per_rank={cores} or start fewer" in line
