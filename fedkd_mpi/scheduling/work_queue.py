"""The processes of a node as one crew: whoever is free trains the next client, whichever process hosts it.

The host sends what came of it, and keeps it in checkpoints: messages, bytes and the log are as if it had trained the
client itself. As many processes train as the node has cores for, the longest clients first, so that they end together
also where cores are of unequal speed or others use them; the rest of the processes sleep meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from fedkd_mpi.client.batches import work
from fedkd_mpi.client.client import Client
from fedkd_mpi.client.result import ClientResult
from fedkd_mpi.codecs.message import Message
from fedkd_mpi.communication.world import World
from fedkd_mpi.config.sections import LocalConfig
from fedkd_mpi.scheduling.array_store import SharedArrayStore

if TYPE_CHECKING:
    from torch import Tensor

CORES = 4096  # of a node, numbered


class NodeWorkQueue:
    """This process as one of its node's. Every client of the node has two boxes: its state, and what it sends."""

    def __init__(
        self,
        world: World,
        clients: Mapping[int, Client],
        hosts: np.ndarray,
        workers: Sequence[int],
        local: LocalConfig,
        store: SharedArrayStore,
    ):
        """Begin with the clients of this node; mpi ranks `hosts` (by client) send for them, those in `workers` train.

        `shelf` has two boxes a client.
        """
        self.clients, self.workers = clients, workers
        self._world, self._rank_of_client, self._local, self._store = world, hosts, local, store
        self._slot = {client: 2 * place for place, client in enumerate(clients)}
        self._numbers = 0  # taken by all workers in the rounds before
        self._received = {client: 0 for client in clients if hosts[client] == world.mpi_rank}
        for client in clients.values():
            self._offload(client)

    @property
    def works(self) -> bool:
        """Whether this process trains clients."""
        return self._world.mpi_rank in self.workers

    def each(self, groups: Sequence[Sequence[Client]]) -> Iterator[Sequence[Client]]:
        """Yield those of the groups of clients, the same on all processes of the node, that this process trains."""
        groups = sorted(groups, key=self._work)
        first, self._numbers = self._numbers, self._numbers + len(groups) + len(self.workers)
        if not self.works:
            return
        while (number := self._store.next_index() - first) < len(groups):
            following = groups[number + len(self.workers) : number + len(self.workers) + 1]
            self._store.prefetch([self._slot[client.id] for group in following for client in group])
            for client in groups[number]:
                self._offload(client)
            yield groups[number]

    def release(self, client: Client) -> None:
        """Put a client's new state where the whole node has it; raises RunFault where there is no room."""
        self._store.update(self._slot[client.id], {name: tensor.numpy() for name, tensor in client.tensors.items()})
        self._offload(client)

    def hand_over(self, contributions: Sequence[ClientResult]) -> list[ClientResult]:
        """Keep the clients' states, give what they send to their hosts, and return those that this process hosts."""
        mine, hosts = [], set()
        for part in contributions:
            self.release(self.clients[part.client])
            if part.client in self._received:
                mine.append(part)
                continue
            arrays = {"report": part.report}
            if part.message:
                arrays["message"] = part.message.whole
            self._store.put(self._slot[part.client] + 1, arrays)
            hosts.add(int(self._rank_of_client[part.client]))
        self._world.wakeup.notify(*hosts)
        return mine

    def await_others(self, cohort: Sequence[int], done: Sequence[ClientResult]) -> list[ClientResult]:
        """Return what other processes did for the clients of a cohort that this one hosts; `done` is what it did."""
        known = {part.client for part in done}
        missing = [client for client in cohort if client in self._received and client not in known]
        slots = [self._slot[client] + 1 for client in missing]
        wanted = [self._received[client] + 1 for client in missing]
        if missing:
            self._world.wait_for(lambda: self._store.versions(slots) == wanted)
        self._received.update(zip(missing, wanted, strict=True))
        for client in cohort:
            if client in self._received:
                self._offload(self.clients[client])
        return [self._contribution(client, self._store.read(slot)) for client, slot in zip(missing, slots, strict=True)]

    def _offload(self, client: Client) -> None:
        """Have the client's state read anew when it is asked for: any process may have changed it."""
        client.offload(partial(self._state, client.id))

    def _state(self, client: int) -> dict[str, Tensor]:
        import torch

        return {name: torch.from_numpy(array) for name, array in self._store.read(self._slot[client]).items()}

    def _contribution(self, client: int, arrays: dict[str, np.ndarray]) -> ClientResult:
        message = Message(arrays["message"]) if "message" in arrays else None
        return ClientResult(client, message, report=arrays["report"])

    def _work(self, group: Sequence[Client]) -> int:
        return -sum(work(len(client.train_indices), self._local) for client in group)


def ranks_with_cores(world: World, hosts: Sequence[int]) -> list[int]:
    """Return which of a node's processes that host clients find a core, or as many as their threads are, for each.

    Collective: every process tells which cores it may use.
    """
    import torch

    cores = np.zeros(CORES, bool)
    cores[[core for core in os.sched_getaffinity(0) if core < CORES]] = True
    allowed = np.unpackbits(world.allgather(np.packbits(cores)), axis=1).astype(bool)
    threads, free, found = torch.get_num_threads(), np.ones(CORES, bool), []
    for mpi_rank in hosts:
        usable = np.flatnonzero(allowed[mpi_rank] & free)
        if not found or len(usable) >= threads:
            found.append(mpi_rank)
            free[usable[:threads]] = False
    return found
