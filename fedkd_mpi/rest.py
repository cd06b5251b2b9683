"""Where the states of clients are between their rounds: in memory, or in files that are read ahead of their turn."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from fedkd_mpi.errors import RunFault

if TYPE_CHECKING:
    from torch import Tensor

    from fedkd_mpi.client import Client


class Rest:
    """Keeps at most `in_memory` clients of a process awake (None = all of them).

    The states of the others lie in a folder of their own under TMPDIR, in files that are of no use to anybody else: a
    checkpoint holds all states, and the folder goes when the process ends.
    """

    def __init__(self, in_memory: int | None, device: str):
        self.in_memory, self.device = in_memory, device
        self._awake: dict[int, Client] = {}  # those used longest ago first
        self._folder: TemporaryDirectory[str] | None = None
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
        from safetensors.torch import save

        try:
            self._folder = self._folder or TemporaryDirectory(prefix="fedkd-clients-")
            path = Path(self._folder.name) / f"{client.id}.safetensors"
            path.write_bytes(save({name: tensor.cpu().contiguous() for name, tensor in client.tensors.items()}))
        except OSError as error:
            raise RunFault(
                f"cannot put a client's state to rest ({error}): raise clients_in_memory, or give TMPDIR more room",
                client=client.id,
            ) from error
        client.lay(lambda: read(path, self.device))


def read(path: Path, device: str) -> dict[str, Tensor]:
    """Return the tensors of a file, in memory of their own."""
    from safetensors.torch import load

    return {name: tensor.to(device) for name, tensor in load(path.read_bytes()).items()}
