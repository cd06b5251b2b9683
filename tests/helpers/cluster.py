"""Several nodes on one Linux machine, each with a network, host name, IPC and /dev/shm of its own, joined by a bridge.

MPI sees hosts that talk TCP; files are shared, as on a cluster's file system. It needs root and iproute2.
"""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from mpirun import find

BRIDGE, NETWORK = "fkbr", "10.98.0"
START = """hostname {name} && mount --make-rprivate / && mount -t tmpfs tmpfs /dev/shm
mount --bind {hosts} /etc/hosts
ip link set lo up && echo $$ > {pid}.new && mv {pid}.new {pid} && exec sleep infinity"""
# Launchers call it as they call ssh: options, the host, then a command line for a shell.
AGENT = """#!/bin/sh
while [ "${{1#-}}" != "$1" ]; do shift; done
node=$1; shift
exec nsenter -t "$(cat {folder}/"$node".pid)" -n -u -i -m --wdns="$PWD" sh -c "$*"
"""


def missing() -> str | None:
    """Return why there can be no cluster here, or None."""
    lacks = next((tool for tool in ("ip", "unshare", "nsenter") if not shutil.which(tool)), None)
    if os.geteuid() != 0:
        return "nodes on one machine need root"
    if lacks:
        return f"nodes on one machine need {lacks} (packages iproute2, util-linux)"
    made = subprocess.run(["ip", "link", "add", BRIDGE, "type", "bridge"], capture_output=True, text=True)
    if made.returncode:
        return f"this kernel makes no bridge: {made.stderr.strip()}"
    subprocess.run(["ip", "link", "del", BRIDGE], check=True)
    return None


class Cluster:
    """As a context manager: the nodes node1, node2, ... with addresses of one network."""

    def __init__(self, folder: Path, nodes: int):
        self.folder, self.names = folder, [f"node{number + 1}" for number in range(nodes)]
        self._holders: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Cluster:
        try:
            _ip("link", "add", BRIDGE, "type", "bridge")
            _ip("link", "set", BRIDGE, "up")
            lines = ["127.0.0.1 localhost", *(f"{NETWORK}.{i} {name}" for i, name in enumerate(self.names, 1))]
            (self.folder / "hosts").write_text("\n".join(lines) + "\n")
            agent = self.folder / "agent"
            agent.write_text(AGENT.format(folder=self.folder))
            agent.chmod(agent.stat().st_mode | stat.S_IXUSR)
            for number, name in enumerate(self.names, 1):
                self._start(name, number)
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
        subprocess.run(["ip", "link", "del", BRIDGE], capture_output=True)

    def command(self, node: str, *command: str | Path) -> list[str]:
        """Return a command that runs another one on a node."""
        enter = ["nsenter", "-t", str(self._pid(node)), "-n", "-u", "-i", "-m", f"--wdns={Path.cwd()}"]
        return [*enter, *map(str, command)]

    def mpirun(self, ranks_per_node: int) -> str:
        """Return the command line with which a node starts Open MPI's ranks on all nodes."""
        launcher = find("openmpi").launcher
        hosts = ",".join(f"{name}:{ranks_per_node}" for name in self.names)
        count = ranks_per_node * len(self.names)
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
        _ip("link", "set", f"fk-{node}", "down")

    def heal(self, node: str) -> None:
        """Plug the network cable in again."""
        _ip("link", "set", f"fk-{node}", "up")

    def _pid(self, node: str) -> int:
        return int((self.folder / f"{node}.pid").read_text())

    def _start(self, name: str, number: int) -> None:
        file = self.folder / f"{name}.pid"
        script = START.format(name=name, hosts=self.folder / "hosts", pid=file)
        command = ["unshare", "-n", "-u", "-i", "-m", "sh", "-c", script]
        self._holders.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True))
        end = time.monotonic() + 30
        while not file.exists():
            assert self._holders[-1].poll() is None, f"{name} has not started"
            assert time.monotonic() < end, f"{name} does not start"
            time.sleep(0.05)
        inside = ["nsenter", "-t", str(self._pid(name)), "-n", "ip"]
        _ip("link", "add", f"fk-{name}", "type", "veth", "peer", "name", "eth9", "netns", str(self._pid(name)))
        _ip("link", "set", f"fk-{name}", "master", BRIDGE, "up")
        subprocess.run([*inside, "addr", "add", f"{NETWORK}.{number}/24", "dev", "eth9"], check=True)
        subprocess.run([*inside, "link", "set", "eth9", "up"], check=True)


def _ip(*arguments: Sequence[str]) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
