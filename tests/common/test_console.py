"""Runs and printing commands whose stdout or stderr is closed, full, or a pipe that nobody reads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from mpirun import PATIENCE, clean_environment, find
from plain_digits import PLAIN_DIGITS

from fedkd_mpi import costlog

TINY = f"{PLAIN_DIGITS} num_clients=2 rounds=2 local.epochs=1 teacher.hidden=[8] student.hidden=[8] device=cpu"
RUN = f"{sys.executable} -m fedkd_mpi.run {TINY}"
GONE = ("| true", "> /dev/full 2> /dev/full", "<&- >&- 2>&-")


def shell(command: str, folder: Path, env: dict[str, str] | None = None) -> tuple[int, str]:
    """Return the exit code of a pipe's first command and all that was printed."""
    done = subprocess.run(
        ["bash", "-c", f"{command}; exit ${{PIPESTATUS[0]}}"],
        env=clean_environment(env),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize("where", GONE)
def test_a_run_that_nobody_hears_completes(where: str, tmp_path: Path) -> None:
    code, printed = shell(f"{RUN} --output x.h5 {where}", tmp_path)
    assert code == 0
    assert "Traceback" not in printed
    assert "Exception ignored" not in printed
    log = costlog.read(tmp_path / "x.h5")
    assert (log["attrs"]["status"], len(log["rounds"]["round"])) == ("completed", 2)


def test_ranks_that_nobody_hears_complete(tmp_path: Path) -> None:
    """Under Open MPI: MPICH's mpiexec itself gives up, and ends its ranks, where it cannot write."""
    if not (installation := find("openmpi")):
        pytest.skip("Open MPI is not installed")
    env = {"MPI4PY_LIBMPI": str(installation.library)}
    shell(f"{installation.launcher} -n 2 {RUN} --output x.h5 > /dev/full", tmp_path, env)
    log = costlog.read(tmp_path / "x.h5")
    assert (log["attrs"]["status"], len(log["rounds"]["round"])) == ("completed", 2)


def test_a_summary_that_the_encoding_lacks_is_printed_as_it_can_be(tmp_path: Path) -> None:
    code, printed = shell(f"{RUN} --output \u00fcber.h5", tmp_path, {"PYTHONIOENCODING": "ascii"})
    assert (code, "\\xfcber.h5" in printed) == (0, True)


@pytest.mark.parametrize("command", ["run --print-config", "report x.h5", "report --help", "sweep --list s.yaml"])
def test_a_command_that_prints_ends_quietly_without_a_reader_and_says_that_a_device_is_full(
    command: str, tmp_path: Path
) -> None:
    (tmp_path / "s.yaml").write_text("config: digits.yaml\nseeds: [0, 1]\nruns: {a: {}}\n")
    if "x.h5" in command:
        assert shell(f"{RUN} --output x.h5", tmp_path)[0] == 0
    command = f"{sys.executable} -m fedkd_mpi.{command}"
    assert shell(f"{command} | true", tmp_path) == (0, "")
    code, printed = shell(f"{command} > /dev/full", tmp_path)
    assert (code, printed) == (1, "fedkd_mpi: cannot write to stdout: No space left on device\n")
