"""Codec `fetchsgd`: a count sketch up, the largest entries of the sketches' sum down, the server keeps the rest."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedkd_mpi.codecs import RAW, Codec, State
from fedkd_mpi.codecs.topk import SPARSE, read_sparse, sparse
from fedkd_mpi.sections import Compression
from fedkd_mpi.streams import generator
from fedkd_mpi.wire import Layer, Record, WireError

SKETCH = 48  # in the first record: float32 [hash functions, buckets]; the others are empty


class FetchSgd(Codec):
    """Sketches add up like the updates they are of, so error feedback can be the server's and clients need no memory.

    Rothchild et al. 2020, without momentum (local steps have their own). Bytes up do not depend on the update; down go
    the `density` share of the entries. The threshold plays no part.
    """

    def __init__(self, compression: Compression, layers: Sequence[Layer]):
        self.layers = layers
        self.numel = sum(layer.numel for layer in layers)
        self.rows = compression.sketch_rows or 5
        self.columns = max(math.ceil((compression.sketch_share or 0.5) * self.numel / self.rows), 1)
        self.count = max(math.ceil((compression.density or 0.01) * self.numel), 1)
        streams = [generator(0, "count sketch", row) for row in range(self.rows)]  # the same everywhere, for ever
        self.buckets = [torch.from_numpy(stream.integers(self.columns, size=self.numel)) for stream in streams]
        self.signs = [
            torch.from_numpy(stream.integers(2, size=self.numel).astype(np.float32) * 2 - 1) for stream in streams
        ]

    def encode(
        self, update: Sequence[Tensor], threshold: float, state: State, rng: np.random.Generator
    ) -> list[Record]:
        """Return the sketch of an update; of the server's, which has few entries that are not zero, those."""
        nonzero = [int(tensor.count_nonzero()) for tensor in update]
        if sum(nonzero) <= self.count:
            return [sparse(tensor, count) for tensor, count in zip(update, nonzero, strict=True)]
        table = self.sketch(torch.cat([tensor.detach().reshape(-1) for tensor in update]))
        data = table.cpu().numpy().astype("<f4").reshape(-1).view(np.uint8)
        return [Record(SKETCH, -1, part) for part in (data, *[data[:0]] * (len(self.layers) - 1))]

    def decode(self, records: Sequence[Record], device: str) -> list[Tensor]:
        """Return the tensors of the server's message; of a client's, its sketch [1, 1, 1, 1, hashes, buckets] alone.

        Raises WireError on another encoding or length.
        """
        if all(record.encoding in (SPARSE, RAW) for record in records):
            pairs = zip(records, self.layers, strict=True)
            return [read_sparse(record, layer).to(device) for record, layer in pairs]
        first, *rest = records
        sizes = [first.data.size - 4 * self.rows * self.columns, *(record.data.size for record in rest)]
        if any(record.encoding != SKETCH for record in records) or any(sizes):
            raise WireError(f"layer {self.layers[0].name}: no sketch of {self.rows} x {self.columns} numbers")
        table = np.frombuffer(first.data.tobytes(), "<f4").reshape(1, 1, 1, 1, self.rows, self.columns)
        return [torch.from_numpy(table.copy()).to(device)]

    def receive(self, decoded: Sequence[Tensor], state: State, share: float) -> list[Tensor]:
        """Return the largest entries of what has been sketched and not yet been sent; the rest stays in "sketch"."""
        if decoded[0].dim() != 6:
            return list(decoded)
        table = decoded[0].reshape(self.rows, self.columns)
        table = table + state["sketch"] if "sketch" in state else table
        estimate = self.unsketch(table)
        places = estimate.abs().topk(self.count).indices
        update = torch.zeros_like(estimate)
        update[places] = estimate[places]
        state["sketch"] = table - self.sketch(update)
        parts = update.split([layer.numel for layer in self.layers])
        return [part.reshape(layer.shape) for part, layer in zip(parts, self.layers, strict=True)]

    def sketch(self, flat: Tensor) -> Tensor:
        """Return the count sketch [hashes, buckets] of a vector: entry i is added, with a sign, to one bucket a row."""
        table = flat.new_zeros(self.rows, self.columns)
        for row, buckets, signs in zip(table, self.buckets, self.signs, strict=True):
            row.index_add_(0, buckets.to(flat.device), flat * signs.to(flat.device))
        return table

    def unsketch(self, table: Tensor) -> Tensor:
        """Return an estimate of the vector: the median over the rows of what its buckets say."""
        rows = zip(table, self.buckets, self.signs, strict=True)
        return (
            torch.stack([row[buckets.to(row.device)] * signs.to(row.device) for row, buckets, signs in rows])
            .median(0)
            .values
        )
