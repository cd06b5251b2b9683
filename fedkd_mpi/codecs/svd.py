"""Codec `svd`: every matrix cut to the smallest rank above the energy threshold (Wu et al. 2022, Methods)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from fedkd_mpi.codecs import RAW, Codec, State, floats, raw, read_floats
from fedkd_mpi.config import Compression
from fedkd_mpi.errors import RunFault
from fedkd_mpi.factorization import exact
from fedkd_mpi.wire import Layer, Record, WireError

LOW_RANK = 1  # U diag(s) [P, K] then V [K, Q], float32


class Svd(Codec):
    """U diag(s) and V of each matrix, 4 K (P + Q) bytes; raw where that is not smaller, and for 1-D tensors."""

    def __init__(self, compression: Compression, layers: Sequence[Layer]):
        self.layers = layers

    def encode(
        self, update: Sequence[Tensor], threshold: float, state: State, rng: np.random.Generator
    ) -> list[Record]:
        """Return the records at energy threshold T; nothing is remembered between rounds."""
        return [self._encode(tensor, layer, threshold) for tensor, layer in zip(update, self.layers, strict=True)]

    def decode(self, records: Sequence[Record], device: str) -> list[Tensor]:
        """Return the tensors; raises WireError on an unknown encoding, an impossible rank or a wrong length."""
        return [self._decode(record, layer, device) for record, layer in zip(records, self.layers, strict=True)]

    def _encode(self, tensor: Tensor, layer: Layer, threshold: float) -> Record:
        if not layer.compressible:
            return raw(tensor)
        rows, columns = layer.matrix_shape
        try:
            factors = exact(tensor.reshape(rows, columns), threshold)
        except ValueError as error:
            raise RunFault(str(error), layer=layer.name) from None
        if factors.rank * (rows + columns) >= rows * columns:
            return raw(tensor)
        return Record(LOW_RANK, factors.rank, floats(factors.left, factors.right), factors.energy)

    def _decode(self, record: Record, layer: Layer, device: str) -> Tensor:
        if record.encoding == RAW:
            return read_floats(record, layer, layer.numel).reshape(layer.shape).to(device)
        if record.encoding != LOW_RANK or not layer.compressible:
            raise WireError(f"layer {layer.name}: encoding {record.encoding} is unknown to codec svd")
        rows, columns = layer.matrix_shape
        if not 0 <= record.rank <= min(rows, columns):
            raise WireError(f"layer {layer.name}: rank {record.rank} of a {rows} x {columns} matrix")
        numbers = read_floats(record, layer, record.rank * (rows + columns)).to(device)
        left = numbers[: rows * record.rank].reshape(rows, record.rank)
        return (left @ numbers[rows * record.rank :].reshape(record.rank, columns)).reshape(layer.shape)
