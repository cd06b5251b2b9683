"""Least-recently-used cache of client states between rounds: in memory, or on disk and read before they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

from fedkd_mpi.communication.world import SingleProcessWorld
from fedkd_mpi.errors import RunFault, UserError
from fedkd_mpi.scheduling.array_store import DiskArrayStore

if TYPE_CHECKING:
    from torch import Tensor

    from fedkd_mpi.client.client import Client


class ClientStateCache:
    """Keeps the states of at most `in_memory` of a process's `count` clients in memory (None: all of them).

    The other states are in a temporary file under TMPDIR, which only this process uses. Checkpoints hold all states.
    """

    def __init__(self, in_memory: int | None, device: str, count: int):
        self.in_memory, self.device = in_memory, device
        self._resident: dict[int, Client] = {}  # least recently used first
        self._count, self._slots = count, dict[int, int]()
        self._store: DiskArrayStore | None = None
        self._reader = ThreadPoolExecutor(1, "states") if in_memory else None

    def prefetch(self, clients: Sequence[Client]) -> None:
        """Begin to read the states of clients that are used next."""
        if self._reader:
            for client in clients:
                client.prefetch(self._reader)

    def release(self, client: Client) -> None:
        """Mark a client as most recently used and offload others if too many are in memory.

        Raises RunFault if a state cannot be written.
        """
        if self.in_memory is None or client.offloaded:
            return
        self._resident.pop(client.id, None)
        self._resident[client.id] = client
        while len(self._resident) > self.in_memory:
            oldest = self._resident.pop(next(iter(self._resident)))
            if oldest.tensors:
                self._offload(oldest)

    def _offload(self, client: Client) -> None:
        try:
            self._store = self._store or DiskArrayStore(SingleProcessWorld(), self._count, 0)
        except UserError as error:
            raise RunFault(str(error), client=client.id) from error
        slot = self._slots.setdefault(client.id, len(self._slots))
        self._store.put(slot, {name: tensor.numpy(force=True) for name, tensor in client.tensors.items()})
        client.offload(partial(self._read, self._store, slot))

    def _read(self, store: DiskArrayStore, slot: int) -> dict[str, Tensor]:
        import torch

        return {name: torch.from_numpy(array).to(self.device) for name, array in store.read(slot).items()}
