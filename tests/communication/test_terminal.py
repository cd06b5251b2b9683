"""The terminal behind a launcher: a person's redirection is respected, and no message in a file is written over."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import COMMAND
from mpirun import PATIENCE, clean_environment, find
from terminals import CONTROL, OnTerminal

ENDLESS = ("rounds=100000", "checkpoint.every=1", "evaluate.every=100000", "--output", "own.h5")


def follow(file: Path, text: str, program: subprocess.Popen[bytes]) -> None:
    """Wait until a file contains a text; the program that writes it must not end before."""
    end = time.monotonic() + PATIENCE
    while text not in file.read_text():
        assert program.poll() is None, file.read_text()
        assert time.monotonic() < end, file.read_text()
        time.sleep(0.05)


@pytest.mark.parametrize("target", ["err", "/dev/null"])
def test_a_redirection_inside_of_a_launcher_is_respected(target: str, mpi_vendor: str, tmp_path: Path) -> None:
    installation = find(mpi_vendor)
    inside = ["sh", "-c", f'exec "$@" 2> {target}', "sh", sys.executable, *COMMAND, "rounds=2", "--output", "own.h5"]
    command = [installation.launcher, "-n", "2", *inside]
    with OnTerminal(100, command, tmp_path, {"MPI4PY_LIBMPI": str(installation.library)}) as terminal:
        assert terminal.wait() == 0
    assert "round 2/2" in terminal.text
    assert not CONTROL.search(terminal.raw), "no live line is drawn"


@pytest.mark.parametrize("mode", ["wb", "ab"])
def test_what_a_run_says_of_a_signal_stays_in_a_file_with_all_that_follows(
    mode: str, mpi_vendor: str, tmp_path: Path
) -> None:
    installation = find(mpi_vendor)
    command = [installation.launcher, "-n", "2", sys.executable, *COMMAND, *ENDLESS]
    environment = clean_environment({"MPI4PY_LIBMPI": str(installation.library)})
    with (tmp_path / "out").open(mode) as out:
        started = subprocess.Popen(command, stdout=out, stderr=out, cwd=tmp_path, env=environment)
        try:
            follow(tmp_path / "out", "round 1/", started)
            started.send_signal(signal.SIGUSR1)
            started.wait(PATIENCE)
        finally:
            started.kill()
    lines = (tmp_path / "out").read_text().splitlines()
    (notice,) = (line for line in lines if "SIGUSR1: the run stops" in line)
    stopped = next(line for line in lines if line.startswith("fedkd_mpi: stopped after "))
    assert notice.startswith("fedkd_mpi: SIGUSR1")
    assert lines[lines.index(notice) + 1].startswith("log: own.h5 (checkpoint: ")
    assert "to continue: " in stopped
