"""One client: its samples, and its private state from round to round."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from torch import Tensor


class Client:
    """All that belongs to one client and lives across rounds.

    `tensors` is its whole private state, by name: "private" (teacher and W_h, flat), "buffers" (student statistics kept
    local), "optimizer.private.*" and "optimizer.student.*", "method.*", "codec.*". Empty until the client takes part.
    It may be at rest in a file (scheduling/state_cache.py), and is read when asked for.
    """

    def __init__(
        self, id: int, train_indices: np.ndarray, test_indices: np.ndarray, tensors: dict[str, Tensor] | None = None
    ):
        self.id, self.train_indices, self.test_indices = id, train_indices, test_indices
        self._tensors = {} if tensors is None else tensors
        self._read: Callable[[], dict[str, Tensor]] | None = None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The state; wakes the client up."""
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
        """Let go of the state, which `read` will bring back."""
        self._tensors, self._read = {}, read

    def prefetch(self, reader: ThreadPoolExecutor) -> None:
        """Begin to read a state at rest."""
        if self._read:
            self._read = reader.submit(self._read).result

    def copy(self) -> dict[str, Tensor]:
        """Return the state without waking the client up."""
        return self._read() if self._read else self._tensors

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors under a prefix, without it."""
        return {name[len(prefix) :]: tensor for name, tensor in self.tensors.items() if name.startswith(prefix)}
