"""The scripts of jobs/ on a real Slurm."""

from __future__ import annotations

import re
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import Command
from mpirun import REPOSITORY, find, how_to_install, run
from sessions import SMALL, assert_same_run, kill, rounds_in
from slurm import ENDED, Slurm, missing, mpi_environment

from fedkd_mpi import costlog
from fedkd_mpi.config.load import load
from fedkd_mpi.errors import UserError
from fedkd_mpi.job import Resources, plan, script
from fedkd_mpi.job import main as job_main
from fedkd_mpi.run import main

JOBS = REPOSITORY / "jobs"
ONE_NODE = ("--ntasks=2", "--ntasks-per-node=2", "--mem=0")
ROUNDS = 8
LASTING = (*SMALL, f"rounds={ROUNDS}", "compression.codec=remembering:Rounding", "checkpoint.every=100")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    if reason := missing():
        pytest.skip(f"no Slurm: {reason}")
    with Slurm(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


def environment(launcher: str, sleep: float = 0) -> dict[str, str]:
    """Return what a job needs; `launcher` is mpirun, pmi2 or pmix."""
    vendor = "mpich" if launcher == "pmi2" else "openmpi"
    installation = find(vendor)
    if installation is None:
        pytest.skip(how_to_install(vendor))
    tests = str(REPOSITORY / "tests" / "helpers")
    found = mpi_environment(installation.launcher, installation.library)
    return {**found, "FEDKD_MPI": launcher, "FEDKD_TEST_SLEEP": str(sleep), "PYTHONPATH": f"{REPOSITORY}:{tests}"}


@pytest.fixture(scope="module")
def timed(slurm: Slurm) -> int:
    """A job whose run takes longer than its time limit; submitted first, for it takes a minute and a half."""
    arguments = (*ONE_NODE, "--time=1", "--signal=B:USR1@1", JOBS / "cpu.slurm", *LASTING)
    return slurm.submit(*arguments, env=environment("mpirun", sleep=2))


@pytest.fixture(params=["mpirun", "pmi2", "pmix"])
def launcher(request: pytest.FixtureRequest, slurm: Slurm) -> str:
    """Every way to start ranks, as FEDKD_MPI names them."""
    if request.param != "mpirun" and (reason := slurm.lacks(request.param)):
        pytest.skip(reason)
    return request.param


def test_a_job_completes(slurm: Slurm, timed: int, launcher: str) -> None:
    words = ("rounds=2", "portable_bits=true")  # for which every rank replaces itself before MPI begins
    job = slurm.submit(*ONE_NODE, JOBS / "cpu.slurm", *SMALL, *words, env=environment(launcher))
    assert slurm.wait(job, *ENDED)["JobState"] == "COMPLETED", slurm.output(job)
    log = costlog.read(slurm.work / f"runs/digits-{job}.h5")
    assert log["attrs"]["status"] == "completed"
    assert log["attrs"]["world_size"] == 2
    assert log["attrs"]["mpi_library"].startswith("MPICH" if launcher == "pmi2" else "Open MPI")
    assert len(log["rounds"]["round"]) == 2
    assert log["starts"]["cpu"][0].endswith(", AVX2")


def test_an_array_runs_a_task_for_each_value(slurm: Slurm, timed: int) -> None:
    arguments = ("--array=0-1", *ONE_NODE, JOBS / "sweep.slurm", *SMALL, "rounds=1")
    job = slurm.submit(*arguments, env=environment("mpirun"))
    for task in (0, 1):
        state = slurm.wait(f"{job}_{task}", *ENDED)["JobState"]
        assert state == "COMPLETED", slurm.output(f"{job}_{task}")
        log = costlog.read(slurm.work / f"runs/seeds-{job}-{task}.h5")
        assert (log["attrs"]["status"], log["attrs"]["seed"]) == ("completed", task)


def test_a_cancelled_job_leaves_a_checkpoint_and_does_not_come_back(slurm: Slurm, timed: int, launcher: str) -> None:
    job = slurm.submit(
        *ONE_NODE, JOBS / "cpu.slurm", *SMALL, "rounds=100000", "time_limit=900", env=environment(launcher)
    )
    log = slurm.work / f"runs/digits-{job}.h5"
    slurm.until(lambda: rounds_in(log) > 0, lambda: slurm.output(job))
    slurm.call("scancel", str(job))
    slurm.wait(job, "CANCELLED")
    slurm.until(lambda: not slurm.call("squeue", "--noheader", f"--jobs={job}"))  # its processes are gone
    fields, found = slurm.show(job), costlog.read(log)
    assert (fields["JobState"], fields["Restarts"]) == ("CANCELLED", "0")
    assert found["attrs"]["status"] == "interrupted", slurm.output(job)
    assert "stopped after" in found["events"]["message"][-1]


def test_a_job_whose_ranks_are_killed_requeues_itself_and_goes_on(slurm: Slurm, timed: int, launcher: str) -> None:
    job = slurm.submit(*ONE_NODE, JOBS / "cpu.slurm", *SMALL, "rounds=30", env=environment(launcher))
    log = slurm.work / f"runs/digits-{job}.h5"
    slurm.until(lambda: rounds_in(log) > 2, lambda: slurm.output(job))
    for pid in slurm.ranks_of(job):
        kill(pid, signal.SIGKILL)
    fields = slurm.wait(job, *ENDED)
    assert (fields["JobState"], fields["Restarts"]) == ("COMPLETED", "1"), slurm.output(job)
    assert "was cut off after round" in slurm.output(job)
    assert "continues with round" in slurm.output(job)
    assert len(costlog.read(log)["rounds"]["round"]) == 30


def test_a_job_that_runs_out_of_time_requeues_itself_and_goes_on(
    slurm: Slurm, timed: int, tmp_path: Path, in_process: Command
) -> None:
    whole = tmp_path / "whole.h5"
    assert in_process(main, *LASTING, "--output", whole)[0] == 0
    fields = slurm.wait(timed, *ENDED)
    assert fields["JobState"] == "COMPLETED", slurm.output(timed)
    assert int(fields["Restarts"]) >= 1
    log = slurm.work / f"runs/digits-{timed}.h5"
    assert "continues with round" in slurm.output(timed)  # appended to what the first part printed
    assert "stopped after" in slurm.output(timed)
    assert_same_run(whole, log)


def test_a_script_for_a_cluster_loads_its_modules_and_environment(
    slurm: Slurm, timed: int, tmp_path: Path, in_process: Command
) -> None:
    venv, told, script_file = tmp_path / "my venv", tmp_path / "told", tmp_path / "own.slurm"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "activate").write_text(f"export PATH={shlex.quote(str(venv / 'bin'))}:$PATH\n")
    python = venv / "bin" / "python"
    python.write_text(f'#!/bin/sh\nprintf "%s" "$FEDKD_TEST_TEXT" > {told}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    options = ["--partition", "all", "--output", "own-%j.out", "--module", "gcc/13", "--venv", str(venv)]
    options += ["--env", "FEDKD_TEST_TEXT=two 'words' $HOME", "--mpi", "mpirun", "--script", str(script_file)]
    assert in_process(job_main, "digits.yaml", *SMALL, "rounds=1", *options)[0] == 0
    env = environment("mpirun") | {"BASH_FUNC_module%%": '() { echo "module $*"; }'}
    job = slurm.submit(*ONE_NODE, script_file, env=env)
    printed = slurm.work / f"own-{job}.out"
    assert slurm.wait(job, *ENDED)["JobState"] == "COMPLETED", printed.read_text()
    assert "module load gcc/13\n" in printed.read_text()
    assert told.read_text() == "two 'words' $HOME"
    assert costlog.read(slurm.work / f"runs/digits-{job}.h5")["attrs"]["status"] == "completed"


GENERATED = {
    "cpu.slurm": ("digits.yaml", Resources(1, 32, 32, 1, 0, 0), {"title": "One node, CPUs only"}),
    "gpu.slurm": ("fashion_mnist.yaml", Resources(1, 5, 5, 1, 4, 0), {"title": "One node with four GPUs"}),
    "gpu_nodes.slurm": ("cifar10.yaml", Resources(2, 9, 5, 1, 4, 0), {"title": "Two nodes with four GPUs each"}),
    "sweep.slurm": (
        "digits.yaml",
        Resources(1, 17, 17, 1, 0, 0),
        {
            "title": "An array of jobs that sweeps seeds, or any other key, or configurations",
            "sweep": ("seed", ["0", "1", "2", "3", "4"]),
        },
    ),
}


@pytest.mark.parametrize("file", GENERATED)
def test_the_shipped_scripts_are_what_the_job_command_writes(file: str) -> None:
    config, resources, options = GENERATED[file]
    name = "seeds" if "sweep" in options else load(Path(config)).name
    expected = script(config, resources, name=name, file=f"jobs/{file}", **options)
    shipped = (JOBS / file).read_text(encoding="utf-8")
    assert re.sub(r"--mem=\d+G", "--mem=0G", shipped) == expected
    assert run(["bash", "-n", JOBS / file]).returncode == 0


@pytest.mark.parametrize(
    ("overrides", "cluster", "expected"),
    [
        ([], (1, 64, 0), Resources(1, 33, 33, 1, 0, 83)),
        (["cohort_size=8"], (1, 64, 0), Resources(1, 9, 9, 1, 0, 23)),
        (["threads_per_rank=4"], (2, 32, 0), Resources(2, 16, 8, 4, 0, 20)),
        (["threads_per_rank=auto"], (1, 32, 4), Resources(1, 5, 5, 6, 4, 13)),
        ([], (2, 32, 4), Resources(2, 9, 5, 1, 4, 13)),
    ],
)
def test_resources_follow_from_configuration_and_cluster(
    overrides: list[str], cluster: tuple[int, int, int], expected: Resources
) -> None:
    assert plan(load(overrides=overrides), *cluster, process_bytes=2 * 10**9) == expected


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="do not fit"):
        plan(load(overrides=["threads_per_rank=64"]), 1, 32, 0, 0)


def test_the_job_command_writes_a_script_for_the_configuration(tmp_path: Path) -> None:
    path = tmp_path / "night.slurm"
    command = ["python", "-m", "fedkd_mpi.job", "digits.yaml", *SMALL, "--script", path, "--mpi", "pmi2"]
    result = run([*command, "--sweep", "compression.t_end=0.97,0.98", "--time", "1-00:00:00"])
    assert result.returncode == 0, result.stderr
    text = path.read_text()
    assert "#SBATCH --ntasks=4\n" in text  # three clients a round and the server
    assert "#SBATCH --array=0-1\n" in text
    assert "#SBATCH --time=1-00:00:00\n" in text
    assert "FEDKD_MPI:-pmi2" in text
    assert int(re.search(r"--mem=(\d+)G", text)[1]) in range(1, 10)
    assert run(["bash", "-n", path]).returncode == 0
