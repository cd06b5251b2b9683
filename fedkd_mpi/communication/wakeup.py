"""Waiting with little CPU use: a process polls at growing intervals, and a datagram ends an interval early."""

from __future__ import annotations

import hmac
import math
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np

from fedkd_mpi.communication import datagrams

# The poll interval is this share of the time waited so far, without and with notifications in the last wait.
WARY, TRUSTING = 0.2, 1.0
SHORTEST_INTERVAL, LONGEST_INTERVAL = 50e-6, 1.0  # seconds: bounds of the poll interval
LONGEST_INTERVAL_OF_ROOT = 50e-3  # seconds; shorter for rank 0, because all other ranks wait for it
AFTER_NOTIFICATION = 1e-3  # seconds: the MPI message may arrive later than its notification; this time doubles
UNDERWAY = 5e-3  # seconds: within a shorter interval a notification may still be on its way
SAME_NODE_INTERVAL = 0.1  # seconds: shortest interval when notifications arrive within one node, where none is lost
STRANGERS = 64  # datagrams of other senders that are read per interval; after that the process sleeps without reading
ADDRESS_BYTES = 16  # bytes of an IPv4 address as text
DRAINED = 1024  # notifications that are read at once at most, so that a flood cannot hold a process here


class WakeupSocket:
    """Sends and receives datagrams that wake a process from its sleep between two polls.

    Only MPI (or the shared table of a node) decides whether a wait is over. A lost notification costs the rest of one
    poll interval. Datagrams without the run's authentication code are ignored.
    """

    def __init__(self, *, root: bool, one_node: bool = True):
        self._share = WARY
        self._longest = LONGEST_INTERVAL_OF_ROOT if root else LONGEST_INTERVAL
        self._socket, self.address = datagrams.open_socket(one_node=one_node)
        self._addresses: list[tuple[str, int] | None] = []
        self._one_node, self._notification = one_node, b""
        self.port: int = self._socket.getsockname()[1]

    def connect(self, addresses: Sequence[str | None], ports: Sequence[int], key: bytes) -> None:
        """Set address and port of every process, by MPI rank, and the key; without this, notify() does nothing."""
        self._addresses = [(host, port) if host else None for host, port in zip(addresses, ports, strict=True)]
        self._notification = datagrams.sign(key, b"wake")

    def notify(self, *mpi_ranks: int) -> None:
        """Wake those of the processes that can be reached."""
        for mpi_rank in mpi_ranks if self._addresses else ():
            if address := self._addresses[mpi_rank]:
                with suppress(OSError):
                    self._socket.sendto(self._notification, address)

    def sleep_until(self, done: Callable[[], bool], look: Callable[[], None], *, same_node: bool = False) -> float:
        """Sleep until done() is true and return the seconds waited; look() is called before each sleep.

        A process that was notified during its last wait (very short waits apart) polls less often, because polling
        takes CPU time from other processes. `same_node`: done() depends on a process of this node, not on MPI.
        """
        start, soon, heard, interval = time.perf_counter(), math.inf, False, 0.0
        shortest = (
            SAME_NODE_INTERVAL if (same_node or self._one_node) and self._share == TRUSTING else SHORTEST_INTERVAL
        )
        while not done():
            look()
            waited = time.perf_counter() - start
            interval = min(max(waited * self._share, shortest), self._longest, soon)
            notified = self._sleep(interval)
            soon = AFTER_NOTIFICATION if notified and not same_node else 2 * soon
            heard = heard or notified
        if heard or interval > UNDERWAY:
            self._share = TRUSTING if heard else WARY
        return time.perf_counter() - start

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _sleep(self, seconds: float) -> bool:
        """Sleep for the given time or until a notification arrives; return whether one arrived.

        All notifications received so far count as one.
        """
        end = time.perf_counter() + seconds
        for _ in range(STRANGERS):
            left = end - time.perf_counter()
            if left <= 0 or (datagram := self._receive(left)) is None:
                return False
            if self._notification and hmac.compare_digest(datagram, self._notification):
                self._drain()
                return True
        time.sleep(max(end - time.perf_counter(), 0.0))
        return False

    def _receive(self, seconds: float) -> bytes | None:
        self._socket.settimeout(seconds)
        try:
            return self._socket.recv(datagrams.LARGEST)
        except TimeoutError:
            return None

    def _drain(self) -> None:
        self._socket.setblocking(False)
        with suppress(BlockingIOError):
            for _ in range(DRAINED):
                self._socket.recv(1)


def introduce(
    wakeup: WakeupSocket, allgather: Callable[[np.ndarray], np.ndarray], hostnames: Sequence[str], hostname: str
) -> tuple[list[str | None], bytes]:
    """Connect all processes' sockets; return the address of every process and the key of rank 0. Collective.

    `allgather` returns the arrays of all processes as bytes, one row per process. `hostnames` are those of all
    processes, `hostname` that of this one.
    """
    own = wakeup.address.encode().ljust(ADDRESS_BYTES, b"\0") + secrets.token_bytes(datagrams.KEY_BYTES)
    told = allgather(np.frombuffer(own, np.uint8))
    ports = allgather(np.array([wakeup.port])).view(np.int64)[:, 0]
    names = [row[:ADDRESS_BYTES].tobytes().rstrip(b"\0").decode() for row in told]
    addresses, key = datagrams.reachable(names, hostnames, hostname), told[0, ADDRESS_BYTES:].tobytes()
    wakeup.connect(addresses, ports.tolist(), key)
    return addresses, key
