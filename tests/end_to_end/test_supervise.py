"""run --supervise: a run that is cut off goes on by itself and ends with the bits of an undisturbed one."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
from command import Command
from mpirun import REPOSITORY, clean_environment, find, how_to_install, run
from sessions import SMALL, Job, assert_same_run, kill, rounds_in

from fedkd_mpi import costlog
from fedkd_mpi.run import main
from fedkd_mpi.simulation.supervisor import Supervisor

LAUNCHER = REPOSITORY / "tests" / "helpers" / "worker_launcher.py"
ROUNDS = 12
LASTING = (*SMALL, f"rounds={ROUNDS}", "local.epochs=10", "checkpoint.every=1")
RUN = ("-m", "fedkd_mpi.run", "--supervise")


def supervised(
    launcher: str, log: Path, *arguments: str, folder: Path, env: Mapping[str, str] = MappingProxyType({})
) -> Job:
    return Job(1, *RUN, launcher, *arguments, "--output", log, folder=folder, env=env)


def starts(log: Path) -> int:
    return len(costlog.read(log)["starts"]["started"])


@pytest.mark.slow
@pytest.mark.parametrize(("vendor", "victim"), [("openmpi", 0), ("mpich", 1)])
def test_a_run_whose_rank_is_killed_completes_with_the_same_bits(
    vendor: str, victim: int, tmp_path: Path, in_process: Command
) -> None:
    installation = find(vendor)
    if installation is None:
        pytest.skip(how_to_install(vendor))
    whole, log = tmp_path / "whole.h5", tmp_path / "cut.h5"
    assert in_process(main, *LASTING, "--output", whole)[0] == 0
    env = {"MPI4PY_LIBMPI": str(installation.library)}
    with supervised(f"{installation.launcher} -n 3", log, *LASTING, folder=tmp_path, env=env) as job:
        job.until(lambda: rounds_in(log) >= 2 and set(job.ranks()) == {0, 1, 2})
        kill(job.ranks()[victim], signal.SIGKILL)
        assert job.wait() == 0, job.text
        assert job.text.count("was cut off after round") == 1
        assert job.text.count("continues with round") == 1
    assert starts(log) == 2
    assert_same_run(whole, log)
    assert not list(tmp_path.glob("*.restarts*"))


@pytest.mark.slow
def test_a_launcher_that_returns_0_for_a_lost_run_is_not_believed(tmp_path: Path, in_process: Command) -> None:
    whole, log = tmp_path / "whole.h5", tmp_path / "cut.h5"
    assert in_process(main, *LASTING, "--output", whole)[0] == 0
    with supervised(f"{sys.executable} {LAUNCHER} lost {log}", log, *LASTING, folder=tmp_path) as job:
        assert job.wait() == 0, job.text
        assert job.text.count("the launcher ended with 0: it is to be started again") == 2
    assert_same_run(whole, log)


def test_a_launcher_that_waits_for_ever_is_ended_after_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", clean_environment()["PYTHONPATH"])
    log = tmp_path / "stays.h5"
    first = [*SMALL, "rounds=2", "--output", str(log)]
    supervisor = Supervisor(f"{sys.executable} {LAUNCHER} stays {log}", log, grace=1.0)
    assert supervisor.run(first, ["--resume", str(log)], restarts=0) == 0
    assert costlog.read(log)["attrs"]["status"] == "completed"


@pytest.mark.slow
def test_a_run_that_fails_at_the_same_place_is_given_up(tmp_path: Path) -> None:
    log = tmp_path / "fails.h5"
    arguments = (*SMALL, "rounds=40", "checkpoint.every=1", "optimizer.name=own_optimizers:Failing")
    result = run([sys.executable, *RUN, "", "--restarts", "1", *arguments, "--output", log])
    assert result.returncode == 1, result.stdout + result.stderr
    assert "was cut off after round" in result.stderr
    assert "in vain 1 of at most 1 times" in result.stderr
    assert result.stderr.splitlines()[-1].endswith("it is not started again, after 2 launches without a further round")
    assert starts(log) == 3


def test_a_refused_run_is_not_started_again(tmp_path: Path) -> None:
    (tmp_path / "there.h5").write_bytes(b"not ours")
    result = run([sys.executable, *RUN, "", *SMALL, "--output", tmp_path / "there.h5"])
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert (tmp_path / "there.h5").read_bytes() == b"not ours"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_run_after_its_round_and_for_good(
    number: signal.Signals, tmp_path: Path, in_process: Command
) -> None:
    if not (installation := find("openmpi")):
        pytest.skip(how_to_install("openmpi"))
    log = tmp_path / "stopped.h5"
    env = {"MPI4PY_LIBMPI": str(installation.library)}
    with supervised(f"{installation.launcher} -n 2", log, *SMALL, "rounds=100000", folder=tmp_path, env=env) as job:
        job.until(lambda: rounds_in(log) > 1)
        job.process.send_signal(number)
        assert job.wait() == 75, job.text
    assert costlog.read(log)["attrs"]["status"] == "interrupted"
    assert "stopped after" in costlog.read(log)["events"]["message"][-1]
    assert starts(log) == 1
    assert not Path(f"{log}.stop").exists()


def test_a_second_ctrl_c_ends_it_at_once(tmp_path: Path) -> None:
    log = tmp_path / "ended.h5"
    arguments = (*SMALL, "rounds=2", "local.epochs=100000")  # a round of hours
    with supervised("", log, *arguments, folder=tmp_path) as job:
        job.until(log.exists)
        time.sleep(0.5)
        for _ in range(2):
            job.process.send_signal(signal.SIGINT)
            time.sleep(0.5)
        assert job.wait() == 75, job.text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--supervise", "", "--dry-run"], "--supervise starts a run"),
        (["--restarts", "3"], "--restarts belongs to --supervise"),
        (["--supervise", "mpirun '", *SMALL], "--supervise 'mpirun '': no closing quotation"),
        (["--supervise", "no-such-mpirun -n 3", *SMALL], "--supervise: no-such-mpirun: No such file or directory"),
        (["--supervise", "", "--restarts", "-1"], "--restarts"),
    ],
)
def test_what_cannot_be_supervised_is_refused(
    arguments: list[str], words: str, in_process: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = in_process(main, *arguments)
    assert (code, out, len(err.splitlines())) == (2, "", 1), err
    assert words in err
    assert not list(tmp_path.glob("runs/*"))
