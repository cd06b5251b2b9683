"""Several nodes on one Linux machine, each with a network, host name, IPC and /dev/shm of its own, joined by a bridge.

MPI sees hosts that talk TCP; files are shared, as on a cluster's file system. It needs root and iproute2.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from mpirun import find

CLUSTERS = range(32)  # at a time on one machine, each with a bridge and a network of its own
OUTSIDE = 254
START = """hostname {name} && mount --make-rprivate / && mount -t tmpfs tmpfs /dev/shm
mount --bind {hosts} /etc/hosts && mount -t tmpfs tmpfs {local}
mkdir {local}/sys && mount -t sysfs sysfs {local}/sys  # where UCX looks for devices of the network
for part in class/net devices/virtual/net; do mount --bind {local}/sys/$part /sys/$part; done
ip link set lo up && echo $$ > {pid}.new && mv {pid}.new {pid} && exec sleep infinity"""
# Launchers call it as they call ssh: options, the host, then a command line for a shell.
AGENT = """#!/bin/sh
while [ "${{1#-}}" != "$1" ]; do shift; done
node=$1; shift
exec nsenter -t "$(cat {folder}/"$node".pid)" -n -u -i -m --wdns="$PWD" sh -c "$*"
"""


def missing() -> str | None:
    """Return why there can be no cluster here, or None."""
    lacks = next((tool for tool in ("ip", "unshare", "nsenter", "setpriv") if not shutil.which(tool)), None)
    if os.geteuid() != 0:
        return "nodes on one machine need root"
    if lacks:
        return f"nodes on one machine need {lacks} (packages iproute2, util-linux)"
    try:
        _ip("link", "del", f"fk{_new_bridge()}")
    except RuntimeError as error:
        return f"this kernel makes no bridge: {error}"
    return None


class Cluster:
    """As a context manager: the nodes node1, node2, ... with addresses of one network, and this machine at `outside`.

    The folder `local` holds other files on each node, and none outside.
    """

    def __init__(self, folder: Path, nodes: int):
        self.folder, self.names = folder, [f"node{number + 1}" for number in range(nodes)]
        self.local = folder / "local"
        self._holders: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Cluster:
        self._number = _new_bridge()
        self._network = f"10.98.{self._number}"
        self.outside = f"{self._network}.{OUTSIDE}"
        try:
            _ip("link", "set", f"fk{self._number}", "up")
            _ip("addr", "add", f"{self.outside}/24", "dev", f"fk{self._number}")
            self.local.mkdir()
            lines = ["127.0.0.1 localhost", f"{self.outside} {host_name()}"]
            lines += [f"{self.address(name)} {name}" for name in self.names]
            (self.folder / "hosts").write_text("\n".join(lines) + "\n")
            agent = self.folder / "agent"
            agent.write_text(AGENT.format(folder=self.folder))
            agent.chmod(agent.stat().st_mode | stat.S_IXUSR)
            for name in self.names:
                self._start(name)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in self.names:
            with suppress(OSError, ValueError):
                self.kill(name)
        for holder in self._holders:
            holder.kill()
            holder.wait()
        _ip("link", "del", f"fk{self._number}")

    def address(self, node: str) -> str:
        """Return the address of a node."""
        return f"{self._network}.{self.names.index(node) + 1}"

    def command(self, node: str, *command: str | Path) -> list[str]:
        """Return a command that runs another one on a node."""
        enter = ["nsenter", "-t", str(self._pid(node)), "-n", "-u", "-i", "-m", f"--wdns={Path.cwd()}"]
        return [*enter, *map(str, command)]

    def launch(self, mpi: str, ranks_per_node: int) -> str:
        """Return the command line with which a node starts the ranks of Open MPI or MPICH on all nodes."""
        launcher, count = find(mpi).launcher, ranks_per_node * len(self.names)
        hosts = ",".join(f"{name}:{ranks_per_node}" for name in self.names)
        if mpi == "mpich":
            return f"{launcher} -launcher ssh -launcher-exec {self.folder / 'agent'} -hosts {hosts} -n {count}"
        prefix = launcher.parent.parent
        return f"{launcher} --prefix {prefix} --host {hosts} -n {count} --map-by ppr:{ranks_per_node}:node"

    def environment(self) -> dict[str, str]:
        """Return what Open MPI needs to start its daemons, and the ranks to find this Python."""
        path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
        return {"PRTE_MCA_plm_ssh_agent": str(self.folder / "agent"), "PATH": path}

    def kill(self, node: str) -> None:
        """End every process of a node at once, as a power failure does; the node can be used again."""
        holder = self._pid(node)
        network = Path(f"/proc/{holder}/ns/net").readlink()
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if int(entry.name) != holder and (entry / "ns" / "net").readlink() == network:
                    os.kill(int(entry.name), signal.SIGKILL)

    def cut(self, node: str) -> None:
        """Pull the network cable of a node."""
        _ip("link", "set", self._cable(node), "down")

    def heal(self, node: str) -> None:
        """Plug the network cable in again."""
        _ip("link", "set", self._cable(node), "up")

    def block_datagrams(self, node: str) -> None:
        """Let a node send no UDP to other nodes, as a firewall between nodes does."""
        subprocess.run(self.command(node, "ip", "rule", "add", "pref", "1", "ipproto", "udp", "blackhole"), check=True)

    def slow(self, node: str, rate: str) -> None:
        """Let a node send no more than e.g. 1mbit per second, as tc writes it."""
        shaped = ("root", "tbf", "rate", rate, "burst", "16kbit", "latency", "1s")
        subprocess.run(self.command(node, "tc", "qdisc", "add", "dev", "eth9", *shaped), check=True)

    def _cable(self, node: str) -> str:
        return f"fk{self._number}-{node}"

    def _pid(self, node: str) -> int:
        return int((self.folder / f"{node}.pid").read_text())

    def _start(self, name: str) -> None:
        file = self.folder / f"{name}.pid"
        script = START.format(name=name, hosts=self.folder / "hosts", local=self.local, pid=file)
        command = ["setpriv", "--pdeathsig", "KILL", "unshare", "-n", "-u", "-i", "-m", "sh", "-c", script]
        self._holders.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True))
        end = time.monotonic() + 30
        while not file.exists():
            assert self._holders[-1].poll() is None, f"{name} has not started"
            assert time.monotonic() < end, f"{name} does not start"
            time.sleep(0.05)
        inside = ["nsenter", "-t", str(self._pid(name)), "-n", "ip"]
        _ip("link", "add", self._cable(name), "type", "veth", "peer", "name", "eth9", "netns", str(self._pid(name)))
        _ip("link", "set", self._cable(name), "master", f"fk{self._number}", "up")
        subprocess.run([*inside, "addr", "add", f"{self.address(name)}/24", "dev", "eth9"], check=True)
        subprocess.run([*inside, "link", "set", "eth9", "up"], check=True)


def host_name() -> str:
    """Return the short name of this machine."""
    return socket.gethostname().partition(".")[0]


def _new_bridge() -> int:
    """Make the bridge fk0, or fk1, ... if others exist, and return its number; raises RuntimeError."""
    problem = ""
    for number in CLUSTERS:
        try:
            _ip("link", "add", f"fk{number}", "type", "bridge")
        except RuntimeError as error:
            problem = str(error)
        else:
            return number
    raise RuntimeError(problem)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
