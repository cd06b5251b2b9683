"""A user's own rule for the mean of the clients' updates: a function of all updates of a round."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fedkd_mpi.codecs import Codec, Sum
from fedkd_mpi.codecs.wire import Record
from fedkd_mpi.common.registry import function_of, resolve
from fedkd_mpi.errors import UserError, one_line

Aggregator = Callable[[Tensor, Tensor], Any]


def find_aggregator(name: str) -> Aggregator | None:
    """Return the function that server.aggregator names, None for the mean; raises UserError if it cannot be loaded."""
    if name == "mean":
        return None
    found: Aggregator = resolve(name, {}, "server.aggregator", function_of("updates", "weights"))
    return found


class Collection(Sum):
    """All decoded updates of a round, in client order; needs the memory of all of them at once."""

    def __init__(self, codec: Codec, device: str, aggregator: Aggregator, name: str):
        super().__init__(codec, device)
        self.aggregator, self.name = aggregator, name
        self._rows: list[Tensor] = []
        self._weights: list[float] = []
        self._shapes: list[torch.Size] = []

    def add(self, records: Sequence[Record], weight: float) -> None:
        decoded = self.codec.decode(records, self.device)
        self._shapes = [tensor.shape for tensor in decoded]
        self._rows.append(torch.cat([tensor.reshape(-1) for tensor in decoded]))
        self._weights.append(weight)

    def take(self) -> list[Tensor]:
        """Return the aggregate in the layers' shapes.

        The function gets updates [clients, numbers] and weights [clients], which add up to 1. Raises UserError if it
        does not return one float32 tensor [numbers].
        """
        weights = torch.tensor(self._weights, dtype=torch.float64)
        rows = torch.stack(self._rows)
        try:
            found = self.aggregator(rows, (weights / weights.sum()).float().to(rows.device))
        except Exception as error:
            raise UserError(f"server.aggregator={self.name}: {one_line(error)}") from error
        if not isinstance(found, Tensor) or found.shape != rows.shape[1:] or found.dtype != torch.float32:
            what = f"{found.dtype} {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise UserError(
                f"server.aggregator={self.name} returned {what} instead of float32 [{rows.shape[1]}]: one number for"
                " each number of the updates"
            )
        parts = found.split([shape.numel() for shape in self._shapes])
        return [part.reshape(shape) for part, shape in zip(parts, self._shapes, strict=True)]
