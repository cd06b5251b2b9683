"""Codec `topk`: the entries of largest magnitude of each tensor, with their indices."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedkd_mpi.codecs import BuiltIn, State, raw, read_raw, require
from fedkd_mpi.codecs.tags import RAW, SPARSE
from fedkd_mpi.codecs.wire import Record, WireError
from fedkd_mpi.config.compression import CompressionConfig
from fedkd_mpi.linalg.layout import canonical
from fedkd_mpi.models.layer import Layer


class TopK(BuiltIn):
    """The share `density` of the entries; a contraction: |x - C(x)|^2 <= (1 - k/n) |x|^2; meant for error feedback.

    Aji and Heafield 2017; Stich, Cordonnier and Jaggi 2018. An entry takes 6 or 8 bytes. The threshold is not used.
    """

    def __init__(self, compression: CompressionConfig, layers: Sequence[Layer]):
        self.layers, self.density = layers, compression.density or 0.01

    def encode(
        self, update: Sequence[Tensor], threshold: float, state: State, rng: np.random.Generator
    ) -> list[Record]:
        """Return the records; at least one entry of each tensor is sent."""
        return [sparse(tensor, share(self.density, tensor.numel())) for tensor in update]

    def decode(self, records: Sequence[Record], device: str) -> list[Tensor]:
        """Return the tensors; raises WireError if indices are not ascending or out of range."""
        return [read_sparse(record, layer).to(device) for record, layer in zip(records, self.layers, strict=True)]


def share(density: float, count: int) -> int:
    """Return the number of entries for a density, at least one; 0.07 of 100 is 7, in spite of rounding errors."""
    return min(max(math.ceil(density * count * (1 - 1e-12)), 1), count)


def sparse(tensor: Tensor, count: int) -> Record:
    """Return the record of the `count` largest entries, or of the raw tensor if that is not larger."""
    flat = canonical(tensor).reshape(-1)
    kind = _index_type(flat.numel())
    if count * (kind.itemsize + 4) >= 4 * flat.numel():
        return raw(tensor)
    indices = flat.abs().topk(count).indices.sort().values
    values = flat[indices].cpu().numpy().astype("<f4")
    data = indices.cpu().numpy().astype(kind).tobytes() + values.tobytes()
    total = float(flat.double().square().sum())
    kept = float(np.square(values, dtype=np.float64).sum())
    return Record(SPARSE, -1, np.frombuffer(data, np.uint8), kept / total if total else 1.0)


def read_sparse(record: Record, layer: Layer) -> Tensor:
    """Return the tensor of a record of sparse(); raises WireError naming the layer if the record is invalid."""
    if record.encoding == RAW:
        return read_raw(record, layer)
    require(record, layer, "topk", SPARSE)
    kind = _index_type(layer.numel)
    count, rest = divmod(record.data.size, kind.itemsize + 4)
    if rest or count > layer.numel:
        raise WireError(f"layer {layer.name}: {record.data.size} bytes are not a list of indices and values")
    data = record.data.tobytes()
    indices = np.frombuffer(data, kind, count).astype(np.int64)
    if count and (indices[-1] >= layer.numel or (np.diff(indices) <= 0).any()):
        raise WireError(f"layer {layer.name}: the indices of entries are not ascending, or out of range")
    dense = np.zeros(layer.numel, np.float32)
    dense[indices] = np.frombuffer(data, "<f4", count, count * kind.itemsize)
    return torch.from_numpy(dense).reshape(layer.shape)


def _index_type(numel: int) -> np.dtype:
    return np.dtype("<u2" if numel <= 2**16 else "<u4")
