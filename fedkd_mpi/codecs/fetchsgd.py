"""Codec `fetchsgd`: a count sketch up, the largest entries of the sketches' sum down, the server keeps the rest."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedkd_mpi.codecs import Codec, State, read_floats, require
from fedkd_mpi.codecs.tags import SKETCH
from fedkd_mpi.codecs.topk import read_sparse, share, sparse
from fedkd_mpi.codecs.wire import Record, WireError
from fedkd_mpi.common.random_streams import generator
from fedkd_mpi.config.sections import CompressionConfig
from fedkd_mpi.linalg.layout import canonical
from fedkd_mpi.models.layer import Layer


class FetchSgd(Codec):
    """Sketches add up like the updates they are of, so error feedback can be the server's and clients need no memory.

    Rothchild et al. 2020, without momentum (local steps have their own). Bytes up do not depend on the update; down go
    the `density` share of the entries. The threshold plays no part.
    """

    def __init__(self, compression: CompressionConfig, layers: Sequence[Layer]):
        self.layers = layers
        self.numel = sum(layer.numel for layer in layers)
        self.rows = compression.sketch_rows or 5
        self.columns = max(math.ceil((compression.sketch_share or 0.5) * self.numel / self.rows), 1)
        self.count = share(compression.density or 0.01, self.numel)
        streams = [generator(0, "count sketch", row) for row in range(self.rows)]  # the same everywhere, for ever
        self.buckets = [torch.from_numpy(stream.integers(self.columns, size=self.numel)) for stream in streams]
        self.signs = [
            torch.from_numpy(stream.integers(2, size=self.numel).astype(np.float32) * 2 - 1) for stream in streams
        ]

    def downlink(self) -> Codec:
        """Return the codec of the server's messages."""
        return Entries(self.layers)

    def encode(
        self, update: Sequence[Tensor], threshold: float, state: State, rng: np.random.Generator
    ) -> list[Record]:
        """Return the sketch of a client's update."""
        table = self.sketch(torch.cat([canonical(tensor).reshape(-1) for tensor in update]))
        data = table.cpu().numpy().astype("<f4").reshape(-1).view(np.uint8)
        return [Record(SKETCH, -1, part) for part in (data, *[data[:0]] * (len(self.layers) - 1))]

    def decode(self, records: Sequence[Record], device: str) -> list[Tensor]:
        """Return a client's sketch alone [hashes, buckets]; raises WireError on another encoding or length."""
        for record, layer in zip(records, self.layers, strict=True):
            require(record, layer, "fetchsgd (uplink)", SKETCH)
        first, *rest = records
        if any(record.data.size for record in rest):
            raise WireError(f"layer {self.layers[0].name}: a sketch is in the first record alone")
        return [read_floats(first, self.layers[0], self.rows * self.columns, device).reshape(self.rows, self.columns)]

    def receive(self, decoded: Sequence[Tensor], state: State, share: float) -> list[Tensor]:
        """Return the largest entries of what has been sketched and not yet been sent; the rest stays in "sketch"."""
        (table,) = decoded
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
        """Return an estimate of the vector: the median over the rows of what its buckets say.

        Of an even number of rows it is the mean of the two middle values: one of them alone would be biased.
        """
        rows = zip(table, self.buckets, self.signs, strict=True)
        said = [row[buckets.to(row.device)] * signs.to(row.device) for row, buckets, signs in rows]
        ordered = torch.stack(said).sort(0).values
        return ordered[(self.rows - 1) // 2].lerp(ordered[self.rows // 2], 0.5)


class Entries(Codec):
    """The entries of the server's update that are not zero, with where they are; raw where that is not larger."""

    def __init__(self, layers: Sequence[Layer]):
        self.layers = layers

    def encode(
        self, update: Sequence[Tensor], threshold: float, state: State, rng: np.random.Generator
    ) -> list[Record]:
        """Return the records; nothing is lost."""
        return [sparse(tensor, int(tensor.count_nonzero())) for tensor in update]

    def decode(self, records: Sequence[Record], device: str) -> list[Tensor]:
        """Return the tensors; raises WireError, naming the layer, on a record that does not fit."""
        return [read_sparse(record, layer).to(device) for record, layer in zip(records, self.layers, strict=True)]
