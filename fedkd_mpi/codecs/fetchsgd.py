"""Codec `fetchsgd`: clients send count sketches; the server sends the largest entries of the sum and keeps the rest."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedkd_mpi.codecs import BuiltIn, Codec, State, read_floats, require
from fedkd_mpi.codecs.tags import SKETCH
from fedkd_mpi.codecs.topk import read_sparse, share, sparse
from fedkd_mpi.codecs.wire import Record, WireError
from fedkd_mpi.common.random_streams import generator
from fedkd_mpi.common.remembered import Kind, Memory
from fedkd_mpi.config.compression import CompressionConfig
from fedkd_mpi.linalg.layout import canonical
from fedkd_mpi.models.layer import Layer


class FetchSgd(BuiltIn):
    """Count sketches are linear, so the server can do error feedback on their sum and clients need no state.

    Rothchild et al. 2020, without momentum (the local optimiser has its own). The uplink bytes do not depend on the
    update. The downlink contains the share `density` of the entries. The threshold is not used.
    """

    def __init__(self, compression: CompressionConfig, layers: Sequence[Layer]):
        self.layers = layers
        self.numel = sum(layer.numel for layer in layers)
        self.rows = compression.sketch_rows or 5
        self.columns = max(math.ceil((compression.sketch_share or 0.5) * self.numel / self.rows), 1)
        self.count = share(compression.density or 0.01, self.numel)
        streams = [generator(0, "count sketch", row) for row in range(self.rows)]  # the same in every run and process
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
        """Return a list with the sketch [hashes, buckets]; raises WireError if an encoding or length is invalid."""
        for record, layer in zip(records, self.layers, strict=True):
            require(record, layer, "fetchsgd (uplink)", SKETCH)
        first, *rest = records
        if any(record.data.size for record in rest):
            raise WireError(f"layer {self.layers[0].name}: a sketch must be in the first record only")
        return [read_floats(first, self.layers[0], self.rows * self.columns, device).reshape(self.rows, self.columns)]

    def receive(self, decoded: Sequence[Tensor], state: State, share: float) -> list[Tensor]:
        """Return the largest entries of the accumulated sketch; the remaining sketch is kept in state["sketch"]."""
        (table,) = decoded
        table = table + state["sketch"] if "sketch" in state else table
        estimate = self.unsketch(table)
        largest = estimate.abs().topk(self.count).indices
        update = torch.zeros_like(estimate)
        update[largest] = estimate[largest]
        state["sketch"] = table - self.sketch(update)
        parts = update.split([layer.numel for layer in self.layers])
        return [part.reshape(layer.shape) for part, layer in zip(parts, self.layers, strict=True)]

    def receiver_memory(self) -> Memory:
        """Return what the server remembers: the sketch of what it has not sent."""
        return Memory({"sketch": Kind((self.rows, self.columns))})

    def sketch(self, flat: Tensor) -> Tensor:
        """Return the count sketch [hashes, buckets] of a vector: each row adds signed entry i to one of its buckets."""
        table = flat.new_zeros(self.rows, self.columns)
        for row, buckets, signs in zip(table, self.buckets, self.signs, strict=True):
            row.index_add_(0, buckets.to(flat.device), flat * signs.to(flat.device))
        return table

    def unsketch(self, table: Tensor) -> Tensor:
        """Return an estimate of the vector: per entry, the median over the rows of its signed bucket.

        With an even number of rows it is the mean of the two middle values; either one alone would be biased.
        """
        rows = zip(table, self.buckets, self.signs, strict=True)
        estimates = [row[buckets.to(row.device)] * signs.to(row.device) for row, buckets, signs in rows]
        ordered = torch.stack(estimates).sort(0).values
        return ordered[(self.rows - 1) // 2].lerp(ordered[self.rows // 2], 0.5)


class Entries(BuiltIn):
    """The non-zero entries of the server's update with their indices; raw if that is not larger."""

    def __init__(self, layers: Sequence[Layer]):
        self.layers = layers

    def encode(
        self, update: Sequence[Tensor], threshold: float, state: State, rng: np.random.Generator
    ) -> list[Record]:
        """Return the records, which are lossless."""
        return [sparse(tensor, int(tensor.count_nonzero())) for tensor in update]

    def decode(self, records: Sequence[Record], device: str) -> list[Tensor]:
        """Return the tensors; raises WireError naming the layer if a record is invalid."""
        return [read_sparse(record, layer).to(device) for record, layer in zip(records, self.layers, strict=True)]
