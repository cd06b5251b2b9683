"""What is left after each kind of end, and what a launcher's odd variables lead to."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import pytest
from command import COMMAND, Command
from mpirun import mpirun, run

from fedkd_mpi.fault_tolerance.leftovers import stale_segments, told


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() or "checkpoints" in path.name}


@pytest.mark.parametrize("wrong", ["student.hidden=[8,8]", "data.name=ade"])
def test_a_refused_run_leaves_nothing(command: Command, tmp_path: Path, wrong: str):
    bad = [wrong, "teacher={name: resnet, depth: 18, width: 4, norm: batch, learning_rate: 0.1}", "local.batch_size=1"]
    assert command("--output", "own.h5", *bad)[0] == 2
    assert files(tmp_path) == set()


def test_a_fault_on_another_rank_leaves_the_log_alone(mpi_vendor: str, tmp_path: Path):
    no_checkpoints = ["checkpoint.every=null", "checkpoint.best=none"]
    part = [*COMMAND, "task=worker_parts:Breaking", "rounds=5", *no_checkpoints, "--output", tmp_path / "x.h5"]
    done = mpirun(3, *part, mpi=mpi_vendor, cwd=tmp_path)
    assert done.returncode != 0
    assert "no such thing" in done.stderr
    assert files(tmp_path) == {"x.h5"}


def test_segments_that_nobody_has_are_named_and_left(tmp_path: Path):
    for name in ("sm_segment.node.0.1", "mpich_shm_1", "sm_segment.used", "open_mpi"):
        (tmp_path / name).write_bytes(bytes(4096))
    (tmp_path / "sm_segment.link").symlink_to(tmp_path / "open_mpi")
    with (tmp_path / "sm_segment.used").open("r+b") as file:
        held = mmap.mmap(file.fileno(), 4096)
    stale = [path.name for path in stale_segments(tmp_path)]
    assert stale == ["mpich_shm_1", "sm_segment.node.0.1"]
    ((text, remedy),) = told(tmp_path)
    assert text.startswith("2 segment(s)")
    assert remedy.startswith(f"rm {tmp_path}/mpich_shm_1")
    held.close()
    assert len(list(tmp_path.iterdir())) == 5


ODD = {
    "OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=abc": "OMPI_COMM_WORLD_SIZE=abc are not a valid rank and size",
    "PMI_RANK=5 PMI_SIZE=3": "the rank is not below the size",
    "PMI_RANK=-1 PMI_SIZE=3": "are not a valid rank and size",
    "SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=1e3": "are not a valid rank and size of srun",
    "PMI_RANK=0 PMI_SIZE=4": "started 4 processes",
}


@pytest.mark.parametrize("variables", ODD)
def test_odd_variables_of_a_launcher_are_refused_in_one_line(variables: str, tmp_path: Path):
    given = dict(pair.split("=") for pair in variables.split())
    done = run([sys.executable, *COMMAND], env=given, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert ODD[variables] in done.stderr


@pytest.mark.parametrize(
    "variables", ["PMI_RANK=5", "OMPI_COMM_WORLD_RANK= OMPI_COMM_WORLD_SIZE=", "SLURM_JOB_END_TIME=x"]
)
def test_stale_variables_that_do_no_harm_are_passed_by(variables: str, tmp_path: Path):
    given = dict(pair.split("=") for pair in variables.split())
    done = run([sys.executable, *COMMAND, "rounds=1"], env=given, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "runs").iterdir())
