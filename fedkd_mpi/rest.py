"""Where a process keeps the states of its clients between rounds: in memory, or on disk, read ahead of their turn."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import zip_longest
from typing import TYPE_CHECKING

from fedkd_mpi.errors import RunFault, UserError
from fedkd_mpi.shelf import DiskShelf
from fedkd_mpi.world import World

if TYPE_CHECKING:
    from torch import Tensor

    from fedkd_mpi.client import Client


class Rest:
    """Keeps at most `in_memory` of `count` clients of a process awake (None = all of them).

    The others' states lie in a file under TMPDIR that is of no use to anybody else: a checkpoint holds all states.
    """

    def __init__(self, in_memory: int | None, device: str, count: int):
        self.in_memory, self.device = in_memory, device
        self._awake: dict[int, Client] = {}  # those used longest ago first
        self._count, self._boxes = count, dict[int, int]()
        self._shelf: DiskShelf | None = None
        self._reader = ThreadPoolExecutor(1, "states") if in_memory else None

    def each(self, groups: Iterable[Sequence[Client]]) -> Iterator[Sequence[Client]]:
        """Yield groups of clients, reading the next one's states meanwhile, and lay to rest those used longest ago.

        Raises RunFault where a state cannot be written.
        """
        groups = list(groups)
        for group, following in zip_longest(groups, groups[1:], fillvalue=()):
            if self._reader:
                for client in following:
                    client.expect(self._reader)
            yield group
            for client in group:
                self.used(client)

    def used(self, client: Client) -> None:
        """Note that a client has been used, and lay others to rest if too many are awake."""
        if self.in_memory is None or client.resting:
            return
        self._awake.pop(client.id, None)
        self._awake[client.id] = client
        while len(self._awake) > self.in_memory:
            oldest = self._awake.pop(next(iter(self._awake)))
            if oldest.tensors:
                self._lay(oldest)

    def _lay(self, client: Client) -> None:
        try:
            self._shelf = self._shelf or DiskShelf(World(), self._count, 0)
        except UserError as error:
            raise RunFault(str(error), client=client.id) from error
        box = self._boxes.setdefault(client.id, len(self._boxes))
        self._shelf.fill(box, {name: tensor.numpy(force=True) for name, tensor in client.tensors.items()})
        client.lay(partial(self._read, self._shelf, box))

    def _read(self, shelf: DiskShelf, box: int) -> dict[str, Tensor]:
        import torch

        return {name: torch.from_numpy(array).to(self.device) for name, array in shelf.read(box).items()}
