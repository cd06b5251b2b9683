"""Watchdog: names the processes that have not arrived at a collective, and ends the run if they make no progress.

A thread of every process sends one small datagram per second with its status and the number of collectives that it has
entered. MPI is not used, so that the watchdog works while the main thread is inside MPI or native code. A stopped
process is recognised because its datagrams stop.
"""

from __future__ import annotations

import atexit
import json
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from fedkd_mpi.common.console import say
from fedkd_mpi.communication import datagrams
from fedkd_mpi.communication.process_status import ProcessStatus

if TYPE_CHECKING:
    from fedkd_mpi.communication.world import World
    from fedkd_mpi.config.sections import WatchdogConfig as Settings

OBSERVERS = 2  # ranks 0 and 1 receive; rank 1 reports if rank 0 itself is silent
BEAT = 1.0  # seconds between two datagrams at most
BEATS = 8  # datagrams within the limit at least
HEEDED = 200  # datagrams per beat and process; more are a flood, in which genuine ones may be lost
LONGEST_PHASE = 200  # characters
ENDING = 60.0  # seconds to wait for the thread's end; on a busy node the thread itself waits for a core


@dataclass
class Sighting:
    """The last datagram of a process as an observer received it; times are on the observer's monotonic clock."""

    status: ProcessStatus = field(default_factory=ProcessStatus)
    pid: int = 0  # 0: no datagram received yet
    number: int = -1  # of its last datagram; older ones (replays) are ignored
    heard: float = 0.0
    changed: float = 0.0


class Watchdog:
    """The watchdog thread of one process; created and stopped by all processes; does nothing for a single process.

    `on_warning` and `on_abort` are called on the reporting observer, from the thread.
    """

    def __init__(self, world: World, settings: Settings):
        self.world, self.limit = world, settings.seconds
        self.abort = settings.abort_seconds or 3 * settings.seconds
        self.on_warning: Callable[[str], None] = lambda text: None
        self.on_abort: Callable[[], None] = lambda: None  # called before rank 1 ends the run instead of rank 0
        self.beat = min(BEAT, self.limit / BEATS)
        self._done = threading.Event()
        self._thread: threading.Thread | None = None
        self._warned: set[int] = set()
        if world.world_size == 1:
            return
        self._socket, host = datagrams.open_socket(one_node=world.one_node)
        self._host = host or datagrams.LOOPBACK
        self._observers, self._number = self._find_observers(), 0
        self._seen = [Sighting() for _ in range(world.world_size)]
        self._forget_times(time.monotonic())
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()
        atexit.register(self.stop)

    def stop(self) -> None:
        """End the thread and wait for it. Also called when the interpreter exits without it, for example by sys.exit.

        The interpreter's exit unwinds the threads that still run. If such a thread is inside torch, the process ends
        with signal 6. Any thread may be there: Python's garbage collection frees torch's objects in the thread that it
        happens to run in.
        """
        self._done.set()
        if self._thread:
            atexit.unregister(self.stop)
            with suppress(OSError):  # the thread has ended, or ends at the end of its beat
                self._socket.sendto(b"", (self._host, self._socket.getsockname()[1]))
            self._thread.join(ENDING)

    def trained(self, round_index: int) -> int:
        """Return on rank 0 how many clients the other processes have trained in a round, as they said last."""
        if self._thread is None:
            return 0
        others = [seen.status for seen in self._seen[1:]]
        return sum(status.trained for status in others if status.round == round_index)

    def _find_observers(self) -> list[tuple[str, int]]:
        """Return the observers' addresses. Collective."""
        ports = self.world.allgather(np.array([self._socket.getsockname()[1]])).view(np.int64)[:, 0]
        pairs = zip(self.world.addresses[:OBSERVERS], ports, strict=False)
        return [(host, int(port)) for host, port in pairs if host]

    def _watch(self) -> None:
        observer = self.world.mpi_rank < OBSERVERS
        last = time.monotonic()
        while not self._done.is_set():
            self._send()
            flooded = self._listen(last + self.beat)
            now = time.monotonic()
            # If this process was stopped, or other senders flood the socket, the times of the others are meaningless.
            if flooded or now - last > self.limit / 2:
                self._forget_times(now)
            elif observer:
                self._look(now)
            last = now
        self._socket.close()

    def _send(self) -> None:
        status = self.world.status
        state = [status.round, status.phase, status.client, status.arrived, status.waiting, status.trained]
        self._number += 1
        body = json.dumps([self.world.mpi_rank, self._number, os.getpid(), state]).encode()
        datagram = datagrams.sign(self.world.key, body)
        for address in self._observers:
            with suppress(OSError):  # the other observer reports an observer that cannot be reached
                self._socket.sendto(datagram, address)

    def _listen(self, until: float) -> bool:
        """Receive datagrams until the given time; return whether there were so many that some may be lost."""
        for _ in range(HEEDED * (len(self._seen) + 1)):
            left = until - time.monotonic()
            if left <= 0 or self._done.is_set():
                return False
            self._socket.settimeout(left)
            try:
                datagram = self._socket.recv(datagrams.LARGEST + 1)
            except OSError:
                continue
            if received := _parse(datagrams.verified(self.world.key, datagram), len(self._seen)):
                self._note(*received)
        self._done.wait(max(until - time.monotonic(), 0.0))
        return True

    def _note(self, rank: int, number: int, pid: int, status: ProcessStatus) -> None:
        sighting, now = self._seen[rank], time.monotonic()
        if number <= sighting.number:
            return
        sighting.heard, sighting.pid, sighting.number = now, pid, number
        if status != sighting.status:
            sighting.status, sighting.changed = status, now

    def _forget_times(self, now: float) -> None:
        for sighting in self._seen:
            sighting.heard = sighting.changed = now

    def _look(self, now: float) -> None:
        """Warn of processes that others wait for and that make no progress; end the run after the second limit."""
        silent = [rank for rank, seen in enumerate(self._seen) if now - seen.heard > self.limit / 2]
        reporter = next((rank for rank in range(OBSERVERS) if rank not in silent), None)
        missing = self._missing(now, silent)
        self._warned.intersection_update(missing)
        if not missing or self.world.mpi_rank != reporter:
            return
        idle = max(now - self._seen[rank].changed for rank in missing)
        text = f"{'; '.join(self._describe(rank, now, rank in silent) for rank in missing)}"
        known = all(self._seen[rank].pid for rank in missing)  # datagrams of unknown processes may be blocked
        if idle > self.abort and known:
            if not self.world.is_root:
                self.on_abort()
            self.world.end(f"fedkd_mpi: watchdog: the run is ended after {idle:.0f} s without progress: {text}")
        if not self._warned.issuperset(missing):
            self._warned.update(missing)
            say(f"fedkd_mpi: watchdog: warning: {text}", error=True)
            self.on_warning(f"watchdog: {text}")

    def _missing(self, now: float, silent: list[int]) -> list[int]:
        """Return the processes without progress within the limit for which others wait."""
        ahead = max(seen.status.arrived for seen in self._seen)
        waits = [seen for seen in self._seen if seen.status.waiting and seen.status.arrived == ahead]
        if not any(now - seen.changed > self.limit for seen in waits):
            return []
        ranks = range(len(self._seen))
        behind = [rank for rank in ranks if self._seen[rank].status.arrived < ahead] or list(ranks)
        # A process behind that waits inside a collective is held up by another one, unless it was stopped there. If no
        # other process remains, MPI itself hangs.
        causes = [rank for rank in behind if rank in silent or not self._seen[rank].status.waiting] or behind
        return [rank for rank in causes if now - self._seen[rank].changed > self.limit]

    def _describe(self, rank: int, now: float, silent: bool) -> str:
        seen, where = self._seen[rank], f"rank {rank} on {self.world.hostnames[rank]}"
        if not seen.pid:
            return f"{where} has sent nothing since the start (are UDP datagrams blocked between the nodes?)"
        sign = f", and has sent nothing for {now - seen.heard:.0f} s" if silent else ""
        since = f"for {now - seen.changed:.0f} s"
        what = "has arrived but does not continue" if seen.status.waiting else "has not arrived"
        return f"{where} (process {seen.pid}) {what}, {since} in {seen.status}{sign}"


def _parse(body: bytes | None, world_size: int) -> tuple[int, int, int, ProcessStatus] | None:
    """Return rank, number, process id and status from a datagram of this run, or None if it is invalid."""
    try:
        rank, number, pid, (round_index, phase, client, arrived, waiting, trained) = json.loads(body or b"")
    except (ValueError, TypeError, RecursionError):
        return None
    numbers = (rank, number, pid, round_index, arrived, waiting, trained, 0 if client is None else client)
    if any(type(each) is not int or not 0 <= each < 2**62 for each in numbers) or rank >= world_size:
        return None
    if not isinstance(phase, str) or len(phase) > LONGEST_PHASE:
        return None
    return rank, number, pid, ProcessStatus(round_index, phase, client, arrived, waiting, trained)
