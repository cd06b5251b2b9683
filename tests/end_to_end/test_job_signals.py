"""The warning before the end of a job, at every moment of a job script, with programs in the place of Slurm's."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mpirun import PATIENCE, REPOSITORY, clean_environment
from sessions import SMALL, rounds_in

from fedkd_mpi import costlog

# A step first waits for a file, as a real one does for its node.
SRUN = """#!/bin/bash
[ "$*" != "--nodes=1 --ntasks=1 true" ] || { touch at-steps; until [ -e go-steps ]; do sleep 0.05; done; exit; }
touch at-launch; until [ -e go-launch ]; do sleep 0.05; done
while [[ $1 == --* ]]; do shift; done
touch at-python; exec "$@"
"""
SLURM = {"srun": SRUN, "squeue": "#!/bin/bash\necho RUNNING\n", "scontrol": '#!/bin/bash\necho "$@" >> scontrol\n'}
# The moments: while the shell prepares, before a step is there, while Python starts, after a round.
MOMENTS = ("steps", "launch", "python", "round")


class Shell:
    """A job script that runs in a folder."""

    def __init__(self, folder: Path):
        self.folder, self.log = folder, folder / "runs" / "digits-7.h5"
        programs = folder / "programs"
        programs.mkdir()
        python = f'#!/bin/bash\nexec {shlex.quote(sys.executable)} "$@"\n'  # a link would not find its packages
        for name, text in {**SLURM, "python": python}.items():
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
        path = os.pathsep.join([str(programs), os.environ["PATH"]])
        job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "digits", "SLURM_CPUS_PER_TASK": "1", "SLURM_RESTART_COUNT": "1"}
        # A job that was just started, of which Slurm does not say when it ends.
        self.environment = clean_environment({**job, "SLURM_JOB_END_TIME": "inf", "FEDKD_MPI": "pmi2", "PATH": path})
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *arguments: str) -> None:
        """Start the script, which waits where a file go-* is missing."""
        for mark in self.folder.glob("*-*"):
            mark.unlink()
        with (self.folder / "errors").open("ab") as errors:
            self.process = subprocess.Popen(
                ["bash", REPOSITORY / "jobs" / "cpu.slurm", *arguments],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stderr=errors,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )

    def warn(self, moment: str) -> None:
        """Send the signal to the shell alone, as Slurm does, and let it go on."""
        done = rounds_in(self.log)
        for step in MOMENTS if moment == "round" else MOMENTS[:-1]:  # after another, the job may end with its round
            end = time.monotonic() + PATIENCE
            while not ((self.folder / f"at-{step}").exists() if step != "round" else rounds_in(self.log) > done):
                assert self.process.poll() is None, (self.folder / "errors").read_text()
                assert time.monotonic() < end
                time.sleep(0.02)
            if step == moment:
                self.process.send_signal(signal.SIGUSR1)
                time.sleep(0.2)  # for the shell: its trap comes first
            (self.folder / f"go-{step}").touch()

    def end(self) -> None:
        """Kill what still runs."""
        if self.process and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    # A run in this process may have left it ignored; then a shell that starts here could not trap it.
    before = signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    job = Shell(tmp_path)
    yield job
    job.end()
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_warning_at_any_moment_lets_the_job_go_on_later(shell: Shell, moment: str) -> None:
    """Every start runs a round, also in a job whose time is shorter than its warning."""
    for done in (0, 1):
        shell.start(*SMALL, "rounds=100000")
        shell.warn(moment)
        assert shell.process.wait(PATIENCE) == 75, (shell.folder / "errors").read_text()
        assert rounds_in(shell.log) > done
        assert (shell.folder / "scontrol").read_text() == "requeue 7\n" * (done + 1)
        assert not list(shell.log.parent.glob("*.stop"))
        with costlog.open(shell.log) as log:
            assert log.attrs["status"] == "interrupted"
            assert log["events"]["message"][-1].endswith("digits-7.h5.stop")
