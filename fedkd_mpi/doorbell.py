"""Waiting asleep: naps that grow with the wait, which a datagram ends early."""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

WARY, TRUSTING = 0.2, 1.0  # sleep between two looks, as a share of the time waited so far, without and with rings ...
SHORTEST_NAP, LONGEST_NAP = 50e-6, 1.0  # ... within these bounds, in seconds ...
LONGEST_NAP_OF_ROOT = 50e-3  # ... and this one for rank 0, because all others wait for it
AFTER_RING = 1e-3  # what the ring speaks of may come a moment later, over another network; this time doubles
UNDERWAY = 5e-3  # after a shorter nap the ring may still be: that it was not heard says nothing
NEAR_NAP = 0.1  # the shortest where rings are heard and all are on one node, where they do not get lost
LOOPBACK = "127.0.0.1"


class Doorbell:
    """Wakes the processes of a run; MPI alone says whether what a process waits for has come.

    A ring that gets lost costs the rest of a nap, a stranger's datagram a look: nothing depends on either.
    """

    def __init__(self, *, root: bool):
        self._share = WARY
        self._longest = LONGEST_NAP_OF_ROOT if root else LONGEST_NAP
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("", 0))
        self._addresses: list[tuple[str, int] | None] = []
        self._one_node = False
        self.port: int = self._socket.getsockname()[1]

    def connect(self, hosts: Sequence[str], ports: Sequence[int]) -> None:
        """Know the doorbells of all processes, by mpi rank; without this, rings do nothing and naps are all."""
        found = {host: _address(host) for host in set(hosts)}
        self._one_node = found.keys() == {LOOPBACK}
        self._addresses = [
            (found[host], port) if found[host] else None for host, port in zip(hosts, ports, strict=True)
        ]

    def ring(self, *mpi_ranks: int) -> None:
        """Wake processes, those that can be reached."""
        for mpi_rank in mpi_ranks if self._addresses else ():
            if address := self._addresses[mpi_rank]:
                with suppress(OSError):
                    self._socket.sendto(b"", address)

    def sleep_until(self, done: Callable[[], bool], look: Callable[[], None], *, near: bool = False) -> float:
        """Sleep until done(), calling look() whenever it is not yet; return the seconds that it took.

        Whoever heard a ring during the last wait (but for very short ones) counts on one: looks cost time that others
        could compute in. `near`: whoever rings has brought something about on this node, and not by MPI.
        """
        start, soon, heard, nap = time.perf_counter(), math.inf, False, 0.0
        shortest = NEAR_NAP if (near or self._one_node) and self._share == TRUSTING else SHORTEST_NAP
        while not done():
            look()
            waited = time.perf_counter() - start
            nap = min(max(waited * self._share, shortest), self._longest, soon)
            rung = self._nap(nap)
            soon = AFTER_RING if rung and not near else 2 * soon
            heard = heard or rung
        if heard or nap > UNDERWAY:
            self._share = TRUSTING if heard else WARY
        return time.perf_counter() - start

    def close(self) -> None:
        """Give the port back."""
        self._socket.close()

    def _nap(self, seconds: float) -> bool:
        """Sleep so long, or until the bell rings, and say whether it has; all rings until now are one."""
        self._socket.settimeout(seconds)
        try:
            self._socket.recv(1)
        except TimeoutError:
            return False
        self._socket.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                self._socket.recv(1)
        return True


def reachable(hosts: Sequence[str], own: str) -> list[str]:
    """Return the hosts as this one, whose name is `own`, reaches them: a name need not resolve on the host itself."""
    return [LOOPBACK if host == own else host for host in hosts]


def _address(host: str) -> str | None:
    with suppress(OSError):
        return socket.gethostbyname(host)
    return None
