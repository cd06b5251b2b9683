"""A real Slurm of one node on loopback: munged, slurmctld and slurmd, started here and stopped at the end."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from mpirun import clean_environment, run
from sessions import kill

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "setpriv")
PACKAGES = "slurm-wlm munge, and libpmix-dev for srun --mpi=pmix"
CPUS = 64  # claimed, not there: jobs of these tests mostly wait
PATIENCE = 480.0  # seconds
CONFIGURATION = """
ClusterName=test
FirstJobId={first}
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={controller}
SlurmdPort={daemon}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=10
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
MpiDefault=none
KillWait=60
OverTimeLimit=10
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=1000000 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
"""


def missing() -> str | None:
    """Return why no Slurm is started here, or None."""
    absent = [program for program in PROGRAMS if not shutil.which(program)]
    if absent:
        return f"{', '.join(absent)} not found: apt-get install {PACKAGES}"
    return None if os.geteuid() == 0 else "starting slurmctld and slurmd takes root"


class Slurm:
    """The cluster; `folder` holds all that it writes, `work` is where jobs run."""

    def __init__(self, folder: Path):
        self.folder, self.work = folder, folder / "work"
        self.daemons: list[subprocess.Popen[bytes]] = []
        for name in ("munge", "state", "spool", "work"):
            (folder / name).mkdir(mode=0o755)
        (folder / "key").write_bytes(secrets.token_bytes(128))
        (folder / "key").chmod(0o600)
        ports = _free_ports(2)
        host = socket.gethostname().partition(".")[0]
        self.file = folder / "slurm.conf"
        settings = {
            "host": host,
            "controller": ports[0],
            "daemon": ports[1],
            "folder": folder,
            "cpus": CPUS,
            "first": secrets.randbelow(10**7) + 1,
        }
        self.file.write_text(CONFIGURATION.format(**settings))

    def __enter__(self) -> Slurm:
        munge = self.folder / "munge"
        files = [f"--{name}={munge / path}" for name, path in (("socket", "socket"), ("pid-file", "pid"))]
        files += [f"--{name}={munge / path}" for name, path in (("log-file", "log"), ("seed-file", "seed"))]
        try:
            self._start("munged", "--foreground", "--force", f"--key-file={self.folder / 'key'}", *files)
            self._start("slurmctld", "-D", "-f", self.file)
            self._start("slurmd", "-D", "-f", self.file)
            self.until(lambda: "idle" in self._call("sinfo", "--noheader", "--format=%T").stdout, self._abort_channel)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError, TimeoutError):
            self._call("scancel", "--full", "--signal=KILL", "--user=root")
        for process in reversed(self.daemons):
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for pid in self._pids():  # steps outlive their slurmd
            kill(pid, signal.SIGKILL)

    def _start(self, *command: str | Path) -> None:
        with (self.folder / f"{command[0]}.out").open("wb") as output:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", *map(str, command)],  # they end with pytest, even if it is killed
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=clean_environment({"SLURM_CONF": str(self.file)}),
                start_new_session=True,  # Ctrl-C is for pytest, which stops them in order
            )
        self.daemons.append(process)

    def _pids(self) -> list[int]:
        """Return the processes of this cluster: daemons, steps, jobs."""
        mark, found = f"SLURM_CONF={self.file}".encode(), []
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                if entry.name.isdecimal() and mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
        return found

    def _abort_channel(self) -> str:
        return "\n".join(path.read_text(errors="replace")[-2000:] for path in self.folder.glob("*.out"))

    def call(self, *command: str | Path, env: Mapping[str, str] = {}) -> str:
        """Run a Slurm command and return what it prints."""
        result = self._call(*command, env=env)
        assert result.returncode == 0, result.stderr
        return result.stdout

    def lacks(self, launcher: str) -> str | None:
        """Return why srun cannot start ranks by this plugin, or None."""
        tried = self._call("srun", f"--mpi={launcher}", "true")
        return f"srun --mpi={launcher}: {tried.stderr}; {PACKAGES}" if tried.returncode else None

    def submit(self, *arguments: str | Path, env: Mapping[str, str] = {}) -> int:
        """Return the number of a job that was submitted with sbatch."""
        return int(self.call("sbatch", "--parsable", *arguments, env=env))

    def show(self, job: int | str) -> dict[str, str]:
        """Return the fields of `scontrol show job`."""
        text = self.call("scontrol", "--oneliner", "show", "job", str(job))
        return dict(re.findall(r"(\w+)=(\S*)", text))

    def wait(self, job: int | str, *states: str) -> dict[str, str]:
        """Return a job's fields once it is in one of the states."""
        self.until(lambda: self.show(job)["JobState"] in states, lambda: f"{self.show(job)}\n{self.output(job)}")
        return self.show(job)

    def until(self, condition: Callable[[], object], explain: Callable[[], str] = str) -> None:
        """Wait for a condition, which is sure to come; `explain` says what happened instead."""
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, f"never came about: {explain()}"
            time.sleep(0.2)

    def pids_of(self, job: int) -> list[int]:
        """Return the ranks of a job."""
        listed = self.call("scontrol", "listpids", str(job)).splitlines()[1:]
        pids = [int(line.split()[0]) for line in listed if line.split()[2] != "extern"]
        commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") for pid in pids if pid > 0}
        run = [b"-m", b"fedkd_mpi.run"]
        return [pid for pid, words in commands.items() if words[0].endswith(b"python") and words[1:3] == run]

    def output(self, job: int | str) -> str:
        """Return what a job has printed."""
        path = Path(self.show(job)["StdOut"])
        return path.read_text(errors="replace") if path.exists() else ""

    def _call(self, *command: str | Path, env: Mapping[str, str] = {}) -> subprocess.CompletedProcess[str]:
        return run(command, env={"SLURM_CONF": str(self.file), **env}, cwd=self.work, timeout=60)


def mpi_environment(launcher: Path, library: Path) -> dict[str, str]:
    """Return what a job needs to find an MPI."""
    path = os.pathsep.join((str(launcher.parent), clean_environment()["PATH"]))
    return {"PATH": path, "MPI4PY_LIBMPI": str(library)}


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
