"""Which clients of a cohort a process trains, in which order, and to whom it gives what they send."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Protocol

from fedkd_mpi.client.client import Client
from fedkd_mpi.client.result import ClientResult
from fedkd_mpi.scheduling.state_cache import ClientStateCache


class Schedule(Protocol):
    """The contract of OwnClients (each process trains the clients that it hosts) and of NodeWorkQueue."""

    @property
    def clients(self) -> Mapping[int, Client]:
        """Return the clients, by id, that this process may train."""

    @property
    def works(self) -> bool:
        """Whether this process trains clients."""

    def each(self, groups: Sequence[Sequence[Client]]) -> Iterator[Sequence[Client]]:
        """Yield those of the groups of clients that this process trains.

        Raises RunFault where a state cannot be read or kept.
        """

    def release(self, client: Client) -> None:
        """Note that a client's state, which may have changed, is not needed for now; raises RunFault as each()."""

    def hand_over(self, results: Sequence[ClientResult]) -> list[ClientResult]:
        """Give what clients send to the processes that host them, and return those that this process hosts."""

    def await_others(self, cohort: Sequence[int], done: Sequence[ClientResult]) -> list[ClientResult]:
        """Return what other processes did for the clients of a cohort that this one hosts; `done` is what it did."""


class OwnClients:
    """A process that trains the clients that it hosts, all of them, one group after another."""

    def __init__(self, clients: Mapping[int, Client], states: ClientStateCache):
        self.clients, self._states = clients, states

    @property
    def works(self) -> bool:
        return bool(self.clients)

    def each(self, groups: Sequence[Sequence[Client]]) -> Iterator[Sequence[Client]]:
        for group, following in zip_longest(groups, groups[1:], fillvalue=()):
            self._states.prefetch(following)
            yield group
            for client in group:
                self.release(client)

    def release(self, client: Client) -> None:
        self._states.release(client)

    def hand_over(self, results: Sequence[ClientResult]) -> list[ClientResult]:
        return list(results)

    def await_others(self, cohort: Sequence[int], done: Sequence[ClientResult]) -> list[ClientResult]:
        return []
