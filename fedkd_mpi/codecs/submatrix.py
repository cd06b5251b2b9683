"""Codec `submatrix`: lossless omission of rows and columns that are all zero; for feddropout and means per class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedkd_mpi.codecs import BuiltIn, State, floats, raw, read_floats, read_raw, require
from fedkd_mpi.codecs.tags import RAW, SUBMATRIX
from fedkd_mpi.codecs.wire import Record, WireError
from fedkd_mpi.config.compression import CompressionConfig
from fedkd_mpi.models.layer import Layer


class Submatrix(BuiltIn):
    """The non-zero rows and columns in float32; raw if that is not larger. A 1-D tensor is one column."""

    def __init__(self, compression: CompressionConfig, layers: Sequence[Layer]):
        self.layers = layers

    def encode(
        self, update: Sequence[Tensor], threshold: float, state: State, rng: np.random.Generator
    ) -> list[Record]:
        """Return the records; the threshold is not used."""
        return [encode(tensor) for tensor in update]

    def decode(self, records: Sequence[Record], device: str) -> list[Tensor]:
        """Return the tensors; raises WireError if the encoding or length of a record is invalid."""
        return [decode(record, layer).to(device) for record, layer in zip(records, self.layers, strict=True)]


def encode(tensor: Tensor) -> Record:
    """Return the record of a tensor: raw if that is not longer."""
    matrix = tensor.reshape(Layer("", tuple(tensor.shape), True).matrix_shape)
    used = [(matrix != 0).any(dim=1), (matrix != 0).any(dim=0)]
    maps = [np.packbits(side.cpu().numpy()) for side in used]
    data = np.concatenate([*maps, floats(matrix[used[0]][:, used[1]])])
    return Record(SUBMATRIX, -1, data, 1.0) if data.size < 4 * tensor.numel() else raw(tensor)


def decode(record: Record, layer: Layer) -> Tensor:
    """Return the tensor of a record, on the CPU; raises WireError if it is invalid for the layer."""
    if record.encoding == RAW:
        return read_raw(record, layer)
    require(record, layer, "submatrix", SUBMATRIX)
    rows, columns = layer.matrix_shape
    ends = np.cumsum([-(-rows // 8), -(-columns // 8)])
    if record.data.size < ends[1]:
        raise WireError(f"layer {layer.name}: {record.data.size} bytes, fewer than its row and column bits")
    used = [
        np.unpackbits(record.data[: ends[0]], count=rows),
        np.unpackbits(record.data[ends[0] : ends[1]], count=columns),
    ]
    down, across = (torch.from_numpy(np.flatnonzero(side)) for side in used)
    rest = record._replace(data=record.data[ends[1] :])
    matrix = torch.zeros(rows, columns)
    matrix[down[:, None], across] = read_floats(rest, layer, len(down) * len(across)).reshape(len(down), len(across))
    return matrix.reshape(layer.shape)
