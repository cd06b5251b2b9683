"""No silent hang: names the processes that have not arrived at a collective, and in the end ends the run.

Every process sends a small datagram a second from a thread of its own: where it is, and at how many collectives it has
arrived. MPI has no part in this, so that it works while the main thread is inside MPI or native code, and a stopped
process is known by its silence.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from fedkd_mpi.console import say
from fedkd_mpi.doorbell import reachable
from fedkd_mpi.place import Place

if TYPE_CHECKING:
    from fedkd_mpi.sections import Watchdog as Settings
    from fedkd_mpi.world import World

OBSERVERS = 2  # ranks 0 and 1 listen: rank 1 speaks where rank 0 itself has fallen silent
BEAT = 1.0  # seconds between two datagrams, less where the limit is short ...
BEATS = 8  # ... so that the limit has so many
TOKEN_BYTES = 8
DATAGRAM_BYTES = 1024


@dataclass
class Sighting:
    """What an observer knows of a process, on the observer's own clock."""

    place: Place = field(default_factory=Place)
    pid: int = 0  # 0 = never heard
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
        self._warned: set[int] = set()
        if world.world_size == 1:
            return
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("", 0))
        self._token, self._observers = self._meet()
        self._seen = [Sighting() for _ in range(world.world_size)]
        self._forget_times(time.monotonic())
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def stop(self) -> None:
        """End the thread."""
        self._done.set()

    def _meet(self) -> tuple[str, list[tuple[str, int]]]:
        """Return the run's secret and the observers' addresses. Collective."""
        ports = self.world.gather_all(np.array([self._socket.getsockname()[1]])).view(np.int64)[:, 0]
        token = np.frombuffer(secrets.token_bytes(TOKEN_BYTES), np.uint8).copy()
        self.world.broadcast(token)
        hosts = reachable(self.world.hostnames[:OBSERVERS], self.world.hostname)
        return token.tobytes().hex(), [(host, int(port)) for host, port in zip(hosts, ports, strict=False)]

    def _watch(self) -> None:
        observer = self.world.mpi_rank < OBSERVERS
        last = time.monotonic()
        while not self._done.is_set():
            self._tell()
            self._listen(last + self.beat)
            now = time.monotonic()
            if now - last > self.limit / 2:  # this very process was stopped: its clocks say nothing of the others
                self._forget_times(now)
            elif observer:
                self._look(now)
            last = now
        self._socket.close()

    def _tell(self) -> None:
        place = self.world.place
        state = [place.round, place.phase, place.client, place.arrived, place.waiting]
        datagram = self._token.encode() + json.dumps([self.world.mpi_rank, os.getpid(), state]).encode()
        for address in self._observers:
            with suppress(OSError):  # an observer that cannot be reached is the other observer's concern
                self._socket.sendto(datagram, address)

    def _listen(self, until: float) -> None:
        while (left := until - time.monotonic()) > 0 and not self._done.is_set():
            self._socket.settimeout(left)
            try:
                datagram = self._socket.recv(DATAGRAM_BYTES)
            except OSError:
                continue
            if (told := _parse(datagram, self._token, len(self._seen))) is None:
                continue
            rank, pid, place = told
            sighting, now = self._seen[rank], time.monotonic()
            sighting.heard, sighting.pid = now, pid
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


def _parse(datagram: bytes, token: str, world_size: int) -> tuple[int, int, Place] | None:
    """Return rank, process and place that a datagram of this run tells, None for any other."""
    secret = token.encode()
    if not secrets.compare_digest(datagram[: len(secret)], secret):
        return None
    try:
        rank, pid, (round_index, phase, client, arrived, waiting) = json.loads(datagram[len(secret) :])
    except (ValueError, TypeError, RecursionError):
        return None
    numbers = (rank, pid, round_index, arrived, waiting, 0 if client is None else client)
    if not isinstance(phase, str) or any(type(number) is not int for number in numbers) or not 0 <= rank < world_size:
        return None
    return rank, pid, Place(round_index, phase, client, arrived, waiting)
