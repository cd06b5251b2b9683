"""A client: its samples and the private state that it keeps between rounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from torch import Tensor


class Client:
    """The sample indices and the state of one client, kept across rounds.

    `tensors` is its whole private state, by name: "private" (teacher and W_h, flat), "buffers" (student statistics kept
    local), "optimizer.private.*" and "optimizer.student.*", "method.*", "codec.*". It is empty until the client first
    participates. The state may be offloaded to a file (scheduling/state_cache.py); it is then read at the next access.
    """

    def __init__(
        self, id: int, train_indices: np.ndarray, test_indices: np.ndarray, tensors: dict[str, Tensor] | None = None
    ):
        self.id, self.train_indices, self.test_indices = id, train_indices, test_indices
        self._tensors = {} if tensors is None else tensors
        self._read: Callable[[], dict[str, Tensor]] | None = None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The state, which is read into memory first if it is offloaded."""
        if self._read:
            self._tensors, self._read = self._read(), None
        return self._tensors

    @tensors.setter
    def tensors(self, tensors: dict[str, Tensor]) -> None:
        self._tensors, self._read = tensors, None

    @property
    def offloaded(self) -> bool:
        """Whether the state is not in memory."""
        return self._read is not None

    def offload(self, read: Callable[[], dict[str, Tensor]]) -> None:
        """Release the memory of the state; `read` returns the state at the next access."""
        self._tensors, self._read = {}, read

    def prefetch(self, reader: ThreadPoolExecutor) -> None:
        """Begin to read an offloaded state in a thread of `reader`."""
        if self._read:
            self._read = reader.submit(self._read).result

    def copy(self) -> dict[str, Tensor]:
        """Return the state; an offloaded client remains offloaded."""
        return self._read() if self._read else self._tensors

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose names begin with `prefix`, by their names without it."""
        return {name[len(prefix) :]: tensor for name, tensor in self.tensors.items() if name.startswith(prefix)}

    def replace(self, prefix: str, part: Mapping[str, Tensor]) -> None:
        """Set the tensors whose names begin with `prefix` to those of `part`, and forget others of such names."""
        kept = {f"{prefix}{name}": tensor for name, tensor in part.items()}
        for name in [name for name in self.tensors if name.startswith(prefix) and name not in kept]:
            del self.tensors[name]
        self.tensors.update(kept)
