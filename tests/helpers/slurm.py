"""A real Slurm, of one node on loopback or of a cluster's nodes: munged, slurmctld and slurmd, stopped at the end."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from cluster import Cluster, host_name
from mpirun import clean_environment, run
from sessions import kill

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "setpriv")
PACKAGES = "slurm-wlm munge, and libpmix-dev for srun --mpi=pmix"
CPUS = 64  # claimed, not there: jobs of these tests mostly wait
PATIENCE = 480.0  # seconds
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
CONFIGURATION = """
ClusterName=test
FirstJobId={first}
SlurmctldHost={host}({address})
SlurmUser=root
SlurmctldPort={controller}
SlurmdPort={daemon}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=10
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
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
SlurmdTimeout={timeout}
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
"""


def missing() -> str | None:
    """Return why no Slurm is started here, or None."""
    absent = [program for program in PROGRAMS if not shutil.which(program)]
    if absent:
        return f"{', '.join(absent)} not found: apt-get install {PACKAGES}"
    return None if os.geteuid() == 0 else "starting slurmctld and slurmd takes root"


class Slurm:
    """A Slurm; `folder` holds all that it writes, `work` is where jobs run.

    Of `cluster`, every node has a slurmd; slurmctld and munged are outside. A node that does not answer for `timeout`
    seconds is down, and its jobs are requeued.
    """

    def __init__(self, folder: Path, cluster: Cluster | None = None, timeout: int = 300):
        self.folder, self.work, self.cluster = folder, folder / "work", cluster
        self.daemons: list[subprocess.Popen[bytes]] = []
        for name in ("munge", "state", "spool", "work"):
            (folder / name).mkdir(mode=0o755)
        (folder / "key").write_bytes(secrets.token_bytes(128))
        (folder / "key").chmod(0o600)
        ports = _free_ports(2)
        addresses = {name: cluster.address(name) for name in cluster.names} if cluster else {host_name(): "127.0.0.1"}
        self.nodes = list(addresses)
        self.file = folder / "slurm.conf"
        settings = {
            "host": host_name(),
            "address": cluster.outside if cluster else "127.0.0.1",
            "controller": ports[0],
            "daemon": ports[1],
            "folder": folder,
            "timeout": timeout,
            "nodes": "\n".join(
                f"NodeName={name} NodeAddr={address} CPUs={CPUS} RealMemory=1000000 State=UNKNOWN"
                for name, address in addresses.items()
            ),
            "first": secrets.randbelow(10**7) + 1,
        }
        self.file.write_text(CONFIGURATION.format(**settings))
        if cluster:  # files that are named by job and step alone, so nodes must not share them
            (folder / "mpi.conf").write_text(f"PMIxCliTmpDirBase={cluster.local}\n")

    def __enter__(self) -> Slurm:
        munge = self.folder / "munge"
        files = [f"--{name}={munge / path}" for name, path in (("socket", "socket"), ("pid-file", "pid"))]
        files += [f"--{name}={munge / path}" for name, path in (("log-file", "log"), ("seed-file", "seed"))]
        try:
            self._start("munged", "--foreground", "--force", f"--key-file={self.folder / 'key'}", *files)
            self._start("slurmctld", "-D", "-f", self.file)
            for node in self.nodes:
                self.boot(node)
            self.until(lambda: self.idle() == len(self.nodes), self._abort_channel)
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

    def boot(self, node: str) -> None:
        """Start the slurmd of a node."""
        command = ("slurmd", "-D", "-f", self.file)
        self._start(*command, "-N", node, inside=self.cluster.command(node) if self.cluster else [])

    def halt(self, node: str) -> None:
        """Kill the slurmd of a node."""
        for pid in self._pids():
            with suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if words[0] == b"slurmd" and node.encode() in words:
                    kill(pid, signal.SIGKILL)

    def idle(self) -> int:
        """Return the number of idle nodes."""
        return self._call("sinfo", "--noheader", "--Node", "--format=%T").stdout.split().count("idle")

    def _start(self, *command: str | Path, inside: Sequence[str] = ()) -> None:
        with (self.folder / f"{command[0]}.out").open("ab") as output:
            process = subprocess.Popen(
                # they end with pytest, even if it is killed
                ["setpriv", "--pdeathsig", "TERM", *inside, *map(str, command)],
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

    def ranks_of(self, job: int) -> list[int]:
        """Return the processes of a job's run, on any node."""
        run = [b"-m", b"fedkd_mpi.run"]
        return self._processes_of(job, lambda words: words[0].endswith(b"python") and words[1:3] == run)

    def launchers_of(self, job: int) -> list[int]:
        """Return the processes of srun that started a job's run."""
        return self._processes_of(job, lambda words: words[0] == b"srun")

    def _processes_of(self, job: int, wanted: Callable[[list[bytes]], bool]) -> list[int]:
        mark, found = f"SLURM_JOB_ID={job}".encode(), []
        for pid in self._pids():
            with suppress(OSError):
                entry = Path(f"/proc/{pid}")
                words, environ = ((entry / name).read_bytes().split(b"\0") for name in ("cmdline", "environ"))
                if mark in environ and wanted(words):
                    found.append(pid)
        return found

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
