"""Waiting asleep: naps that grow with the wait, which a datagram ends early."""

from __future__ import annotations

import hmac
import math
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np

from fedkd_mpi.communication import datagrams

WARY, TRUSTING = 0.2, 1.0  # sleep between two looks, as a share of the time waited so far, without and with rings ...
SHORTEST_INTERVAL, LONGEST_INTERVAL = 50e-6, 1.0  # ... within these bounds, in seconds ...
LONGEST_INTERVAL_OF_ROOT = 50e-3  # ... and this one for rank 0, because all others wait for it
AFTER_NOTIFICATION = 1e-3  # what the ring speaks of may come a moment later, over another network; this time doubles
UNDERWAY = 5e-3  # after a shorter nap the ring may still be: that it was not heard says nothing
SAME_NODE_INTERVAL = 0.1  # the shortest where rings are heard and all are on one node, where they do not get lost
STRANGERS = 64  # datagrams of others that a nap looks at before it sleeps on without listening
ADDRESS_BYTES = 16  # of the text of an IPv4 address
DRAINED = 1024  # rings that one nap takes up at most: no flood holds a process here


class WakeupSocket:
    """Wakes the processes of a run; MPI alone says whether what a process waits for has come.

    A ring that gets lost costs the rest of a nap, and strangers' datagrams are not heard: nothing depends on either.
    """

    def __init__(self, *, root: bool, one_node: bool = True):
        self._share = WARY
        self._longest = LONGEST_INTERVAL_OF_ROOT if root else LONGEST_INTERVAL
        self._socket, self.address = datagrams.open_socket(one_node=one_node)
        self._addresses: list[tuple[str, int] | None] = []
        self._one_node, self._ring = one_node, b""
        self.port: int = self._socket.getsockname()[1]

    def connect(self, addresses: Sequence[str | None], ports: Sequence[int], key: bytes) -> None:
        """Know the doorbells of all processes, by mpi rank; without this, rings do nothing and naps are all."""
        self._addresses = [(host, port) if host else None for host, port in zip(addresses, ports, strict=True)]
        self._ring = datagrams.sign(key, b"ring")

    def notify(self, *mpi_ranks: int) -> None:
        """Wake processes, those that can be reached."""
        for mpi_rank in mpi_ranks if self._addresses else ():
            if address := self._addresses[mpi_rank]:
                with suppress(OSError):
                    self._socket.sendto(self._ring, address)

    def sleep_until(self, done: Callable[[], bool], look: Callable[[], None], *, same_node: bool = False) -> float:
        """Sleep until done(), calling look() whenever it is not yet; return the seconds that it took.

        Whoever heard a ring during the last wait (but for very short ones) counts on one: looks cost time that others
        could compute in. `near`: whoever rings has brought something about on this node, and not by MPI.
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
        """Give the port back."""
        self._socket.close()

    def _sleep(self, seconds: float) -> bool:
        """Sleep so long, or until the bell rings, and say whether it has; all rings until now are one."""
        end = time.perf_counter() + seconds
        for _ in range(STRANGERS):
            left = end - time.perf_counter()
            if left <= 0 or (datagram := self._receive(left)) is None:
                return False
            if self._ring and hmac.compare_digest(datagram, self._ring):
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
