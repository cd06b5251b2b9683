"""The work queue of a node: each free process trains the next client, independently of the client's MPI rank.

A client's MPI rank sends the result and saves it in checkpoints. So messages, bytes and the log are the same as if that
rank had trained the client itself. As many processes train as the node has cores for; the others sleep. Clients with
the most work are trained first, so that the processes finish at about the same time even on cores of unequal speed.
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
from fedkd_mpi.scheduling.array_store import ArrayStore

if TYPE_CHECKING:
    from torch import Tensor

CORES = 4096  # largest number of cores per node


class NodeWorkQueue:
    """One process's view of the work queue of its node.

    Every client of the node has two slots in the store: its state and its result.
    """

    def __init__(
        self,
        world: World,
        clients: Mapping[int, Client],
        rank_of_client: np.ndarray,
        workers: Sequence[int],
        local: LocalConfig,
        store: ArrayStore,
    ):
        """Start with the `clients` of this node, by id.

        `rank_of_client` is the MPI rank that sends for each client of the run, `workers` are the MPI ranks of this node
        that train. `store` has two slots per client.
        """
        self.clients, self.workers = clients, workers
        self._world, self._rank_of_client, self._local, self._store = world, rank_of_client, local, store
        self._slot = {client: 2 * index for index, client in enumerate(clients)}
        self._numbers = 0  # indices that all workers have taken in earlier rounds
        self._received = {client: 0 for client in clients if rank_of_client[client] == world.mpi_rank}
        for client in clients.values():
            self._offload(client)

    @property
    def works(self) -> bool:
        """Whether this process trains clients."""
        return self._world.mpi_rank in self.workers

    def each(self, groups: Sequence[Sequence[Client]]) -> Iterator[Sequence[Client]]:
        """Yield the groups of clients that this process trains; `groups` is the same on all processes of the node."""
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
        """Write a client's new state to the shared store; raises RunFault if the store has no room for it."""
        self._store.update(self._slot[client.id], {name: tensor.numpy() for name, tensor in client.tensors.items()})
        self._offload(client)

    def hand_over(self, contributions: Sequence[ClientResult]) -> list[ClientResult]:
        """Store the states of trained clients; return the results of this rank's clients and pass on the others."""
        mine, receivers = [], set()
        for part in contributions:
            self.release(self.clients[part.client])
            if part.client in self._received:
                mine.append(part)
                continue
            arrays = {"report": part.report}
            if part.message:
                arrays["message"] = part.message.whole
            self._store.put(self._slot[part.client] + 1, arrays)
            receivers.add(int(self._rank_of_client[part.client]))
        self._world.notify(*receivers)
        return mine

    def await_others(self, cohort: Sequence[int], done: Sequence[ClientResult]) -> list[ClientResult]:
        """Wait for and return the results that other processes computed for this rank's clients of a cohort.

        `done` are the results that this process computed itself.
        """
        known = {part.client for part in done}
        missing = [client for client in cohort if client in self._received and client not in known]
        slots = [self._slot[client] + 1 for client in missing]
        wanted = [self._received[client] + 1 for client in missing]
        if missing:
            status = self._world.status
            status.at(status.round, "waiting for clients in training elsewhere")
            self._world.wait_for(lambda: self._store.versions(slots) == wanted)
        self._received.update(zip(missing, wanted, strict=True))
        for client in cohort:
            if client in self._received:
                self._offload(self.clients[client])
        return [self._contribution(client, self._store.read(slot)) for client, slot in zip(missing, slots, strict=True)]

    def _offload(self, client: Client) -> None:
        """Make the client read its state from the store at the next access: any process may have changed it."""
        client.offload(partial(self._state, client.id))

    def _state(self, client: int) -> dict[str, Tensor]:
        import torch

        return {name: torch.from_numpy(array) for name, array in self._store.read(self._slot[client]).items()}

    def _contribution(self, client: int, arrays: dict[str, np.ndarray]) -> ClientResult:
        message = Message(arrays["message"]) if "message" in arrays else None
        return ClientResult(client, message, report=arrays["report"])

    def _work(self, group: Sequence[Client]) -> int:
        return -sum(work(len(client.train_indices), self._local) for client in group)


def ranks_with_cores(world: World, candidates: Sequence[int]) -> list[int]:
    """Return those of the MPI ranks `candidates` of one node that get cores of their own, one per torch thread.

    The first candidate is always among them. Collective: every process reports which cores it may use.
    """
    import torch

    cores = np.zeros(CORES, bool)
    cores[[core for core in os.sched_getaffinity(0) if core < CORES]] = True
    allowed = np.unpackbits(world.allgather(np.packbits(cores)), axis=1).astype(bool)
    threads, free = torch.get_num_threads(), np.ones(CORES, bool)
    found: list[int] = []
    for mpi_rank in candidates:
        usable = np.flatnonzero(allowed[mpi_rank] & free)
        if not found or len(usable) >= threads:
            found.append(mpi_rank)
            free[usable[:threads]] = False
    return found
