"""No silent hang: names the processes that have not arrived at a collective, and in the end ends the run.

Every process sends a small datagram a second from a thread of its own: where it is, and at how many collectives it has
arrived. MPI has no part in this, so that it works while the main thread is inside MPI or native code, and a stopped
process is known by its silence.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from fedkd_mpi import datagrams
from fedkd_mpi.console import say
from fedkd_mpi.place import Place

if TYPE_CHECKING:
    from fedkd_mpi.sections import Watchdog as Settings
    from fedkd_mpi.world import World

OBSERVERS = 2  # ranks 0 and 1 listen: rank 1 speaks where rank 0 itself has fallen silent
BEAT = 1.0  # seconds between two datagrams, less where the limit is short ...
BEATS = 8  # ... so that the limit has so many
HEEDED = 200  # datagrams in a beat for each process; more are a flood, in which genuine ones may be lost
LONGEST_PHASE = 200  # characters


@dataclass
class Sighting:
    """What an observer knows of a process, on the observer's own clock."""

    place: Place = field(default_factory=Place)
    pid: int = 0  # 0 = never heard
    number: int = -1  # of its last datagram: an older one, sent again, is ignored
    heard: float = 0.0
    changed: float = 0.0


class Watchdog:
    """The thread of one process; made and stopped by all processes, does nothing where there is only one.

    `on_warning` and `on_abort` are called on the observer that speaks, from the thread.
    """

    def __init__(self, world: World, settings: Settings):
        self.world, self.limit = world, settings.seconds
        self.abort = settings.abort_seconds or 3 * settings.seconds
        self.on_warning: Callable[[str], None] = lambda text: None
        self.on_abort: Callable[[], None] = lambda: None  # before rank 1 ends the run in rank 0's place
        self.beat = min(BEAT, self.limit / BEATS)
        self._done = threading.Event()
        self._thread: threading.Thread | None = None
        self._warned: set[int] = set()
        if world.world_size == 1:
            return
        self._socket, host = datagrams.open_socket(one_node=world.one_node)
        self._host = host or datagrams.LOOPBACK
        self._observers, self._number = self._meet(), 0
        self._seen = [Sighting() for _ in range(world.world_size)]
        self._forget_times(time.monotonic())
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and wait for it: one that still runs while the interpreter ends can take the process down."""
        self._done.set()
        if self._thread:
            with suppress(OSError):  # it has ended, or ends with its beat
                self._socket.sendto(b"", (self._host, self._socket.getsockname()[1]))
            self._thread.join(self.beat + 1.0)

    def _meet(self) -> list[tuple[str, int]]:
        """Return the observers' addresses. Collective."""
        ports = self.world.gather_all(np.array([self._socket.getsockname()[1]])).view(np.int64)[:, 0]
        pairs = zip(self.world.addresses[:OBSERVERS], ports, strict=False)
        return [(host, int(port)) for host, port in pairs if host]

    def _watch(self) -> None:
        observer = self.world.mpi_rank < OBSERVERS
        last = time.monotonic()
        while not self._done.is_set():
            self._tell()
            flooded = self._listen(last + self.beat)
            now = time.monotonic()
            # Where this very process was stopped, or strangers fill the socket, its clocks say nothing of the others.
            if flooded or now - last > self.limit / 2:
                self._forget_times(now)
            elif observer:
                self._look(now)
            last = now
        self._socket.close()

    def _tell(self) -> None:
        place = self.world.place
        state = [place.round, place.phase, place.client, place.arrived, place.waiting]
        self._number += 1
        body = json.dumps([self.world.mpi_rank, self._number, os.getpid(), state]).encode()
        datagram = datagrams.sign(self.world.key, body)
        for address in self._observers:
            with suppress(OSError):  # an observer that cannot be reached is the other observer's concern
                self._socket.sendto(datagram, address)

    def _listen(self, until: float) -> bool:
        """Take up what the others tell until a moment; return whether so much came that some of it may be lost."""
        for _ in range(HEEDED * (len(self._seen) + 1)):
            left = until - time.monotonic()
            if left <= 0 or self._done.is_set():
                return False
            self._socket.settimeout(left)
            try:
                datagram = self._socket.recv(datagrams.LARGEST + 1)
            except OSError:
                continue
            if told := _parse(datagrams.verified(self.world.key, datagram), len(self._seen)):
                self._note(*told)
        self._done.wait(max(until - time.monotonic(), 0.0))
        return True

    def _note(self, rank: int, number: int, pid: int, place: Place) -> None:
        sighting, now = self._seen[rank], time.monotonic()
        if number <= sighting.number:
            return
        sighting.heard, sighting.pid, sighting.number = now, pid, number
        if place != sighting.place:
            sighting.place, sighting.changed = place, now

    def _forget_times(self, now: float) -> None:
        for sighting in self._seen:
            sighting.heard = sighting.changed = now

    def _look(self, now: float) -> None:
        """Warn of, and after the second limit end the run for, processes that others wait for and that do not move."""
        silent = [rank for rank, seen in enumerate(self._seen) if now - seen.heard > self.limit / 2]
        speaker = next((rank for rank in range(OBSERVERS) if rank not in silent), None)
        missing = self._missing(now, silent)
        self._warned.intersection_update(missing)
        if not missing or self.world.mpi_rank != speaker:
            return
        idle = max(now - self._seen[rank].changed for rank in missing)
        text = f"{'; '.join(self._describe(rank, now, rank in silent) for rank in missing)}"
        known = all(self._seen[rank].pid for rank in missing)  # where datagrams do not get through, only MPI knows
        if idle > self.abort and known:
            if not self.world.is_root:
                self.on_abort()
            self.world.end(f"fedkd_mpi: watchdog: the run is ended after {idle:.0f} s without progress: {text}")
        if not self._warned.issuperset(missing):
            self._warned.update(missing)
            say(f"fedkd_mpi: watchdog: warning: {text}", error=True)
            self.on_warning(f"watchdog: {text}")

    def _missing(self, now: float, silent: list[int]) -> list[int]:
        """Return the processes that have not moved within the limit although others wait for them."""
        ahead = max(seen.place.arrived for seen in self._seen)
        waits = [seen for seen in self._seen if seen.place.waiting and seen.place.arrived == ahead]
        if not any(now - seen.changed > self.limit for seen in waits):
            return []
        ranks = range(len(self._seen))
        behind = [rank for rank in ranks if self._seen[rank].place.arrived < ahead] or list(ranks)
        # Of those behind, who waits inside a collective is held up by another, unless it was stopped there; where that
        # leaves none, MPI itself hangs.
        causes = [rank for rank in behind if rank in silent or not self._seen[rank].place.waiting] or behind
        return [rank for rank in causes if now - self._seen[rank].changed > self.limit]

    def _describe(self, rank: int, now: float, silent: bool) -> str:
        seen, where = self._seen[rank], f"rank {rank} on {self.world.hostnames[rank]}"
        if not seen.pid:
            return f"{where} has not been heard since the start (are UDP datagrams blocked between the nodes?)"
        sign = f", and no sign of life for {now - seen.heard:.0f} s" if silent else ""
        since = f"for {now - seen.changed:.0f} s"
        what = "has arrived but does not go on" if seen.place.waiting else "has not arrived"
        return f"{where} (process {seen.pid}) {what}, {since} in {seen.place}{sign}"


def _parse(body: bytes | None, world_size: int) -> tuple[int, int, int, Place] | None:
    """Return rank, number, process and place that a datagram of this run tells, None where it tells nothing."""
    try:
        rank, number, pid, (round_index, phase, client, arrived, waiting) = json.loads(body or b"")
    except (ValueError, TypeError, RecursionError):
        return None
    numbers = (rank, number, pid, round_index, arrived, waiting, 0 if client is None else client)
    if any(type(each) is not int or not 0 <= each < 2**62 for each in numbers) or rank >= world_size:
        return None
    if not isinstance(phase, str) or len(phase) > LONGEST_PHASE:
        return None
    return rank, number, pid, Place(round_index, phase, client, arrived, waiting)
