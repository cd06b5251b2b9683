"""Codec `svd`: every matrix cut to the smallest rank above the energy threshold (Wu et al. 2022, Methods)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedkd_mpi.codecs import RAW, Codec, State, Sum, floats, raw, read_floats
from fedkd_mpi.errors import RunFault
from fedkd_mpi.factorization import Factors, exact_each, fast
from fedkd_mpi.sections import Compression
from fedkd_mpi.wire import Layer, Record, WireError

TOGETHER = 96  # sum of ranks from which more factors side by side make no faster product
LOW_RANK = 1  # U diag(s) [P, K] then V [K, Q], float32


class Svd(Codec):
    """U diag(s) and V of each matrix, 4 K (P + Q) bytes; raw where that is not smaller, and for 1-D tensors."""

    def __init__(self, compression: Compression, layers: Sequence[Layer]):
        self.layers, self.warm = layers, bool(compression.warm_start)

    def encode(
        self, update: Sequence[Tensor], threshold: float, state: State, rng: np.random.Generator
    ) -> list[Record]:
        """Return the records at energy threshold T.

        With compression.warm_start the sender's state keeps U diag(s) ("left.<layer>"); else nothing is remembered.
        """
        found = iter(self._factors(update, threshold, state))
        return [
            _record(part, next(found)) if layer.compressible else raw(part)
            for part, layer in zip(update, self.layers, strict=True)
        ]

    def decode(self, records: Sequence[Record], device: str) -> list[Tensor]:
        """Return the tensors; raises WireError on an unknown encoding, an impossible rank or a wrong length."""
        return [self._decode(record, layer, device) for record, layer in zip(records, self.layers, strict=True)]

    def _factors(self, update: Sequence[Tensor], threshold: float, state: State) -> list[Factors]:
        """The factors of the layers that are matrices; raises RunFault naming one that is not finite."""
        layers = [layer for layer in self.layers if layer.compressible]
        parts = [part for part, layer in zip(update, self.layers, strict=True) if layer.compressible]
        matrices = [part.reshape(layer.matrix_shape) for part, layer in zip(parts, layers, strict=True)]
        try:
            if not self.warm:
                return exact_each(matrices, threshold)
            keys = [f"left.{layer.name}" for layer in layers]
            found = [fast(matrix, threshold, state.get(key)) for matrix, key in zip(matrices, keys, strict=True)]
            state.update(zip(keys, (factors.left for factors in found), strict=True))
        except ValueError as error:
            wrong = next(layer for layer, part in zip(layers, parts, strict=True) if not torch.isfinite(part).all())
            raise RunFault(str(error), layer=wrong.name) from None
        return found

    def _decode(self, record: Record, layer: Layer, device: str) -> Tensor:
        if record.encoding == RAW:
            return read_floats(record, layer, layer.numel, device).reshape(layer.shape)
        left, right = self.factors(record, layer, device)
        return (left @ right).reshape(layer.shape)

    def factors(self, record: Record, layer: Layer, device: str) -> tuple[Tensor, Tensor]:
        """Return U diag(s) and V of a record; raises WireError if it is none of them or does not fit."""
        if record.encoding != LOW_RANK or not layer.compressible:
            raise WireError(f"layer {layer.name}: encoding {record.encoding} is unknown to codec svd")
        rows, columns = layer.matrix_shape
        if not 0 <= record.rank <= min(rows, columns):
            raise WireError(f"layer {layer.name}: rank {record.rank} of a {rows} x {columns} matrix")
        numbers = read_floats(record, layer, record.rank * (rows + columns), device)
        split = rows * record.rank
        return numbers[:split].reshape(rows, record.rank), numbers[split:].reshape(record.rank, columns)

    def sum(self, device: str) -> Sum:
        """Return a sum that multiplies the factors of several messages at once."""
        return FactoredSum(self, device)


def _record(tensor: Tensor, factors: Factors) -> Record:
    entries = factors.left.numel() + factors.right.numel()
    if entries >= tensor.numel():
        return raw(tensor)
    return Record(LOW_RANK, factors.rank, floats(factors.left, factors.right), factors.energy)


class FactoredSum(Sum):
    """Collects factors, side by side, and adds their product when their ranks together come to TOGETHER.

    One product of wide factors is faster than many of narrow ones, and no dense tensor is made of a single message.
    """

    codec: Svd

    def __init__(self, codec: Svd, device: str):
        super().__init__(codec, device)
        self._waiting: list[list[tuple[Tensor, Tensor]]] = [[] for _ in codec.layers]

    def add(self, records: Sequence[Record], weight: float) -> None:
        """Add weight times a message; raises WireError, naming the layer, if a record does not fit."""
        layers = self.codec.layers
        self.totals = self.totals or [torch.zeros(layer.shape, device=self.device) for layer in layers]
        for index, (record, layer) in enumerate(zip(records, layers, strict=True)):
            if record.encoding == RAW:
                self.totals[index].add_(self.codec._decode(record, layer, self.device), alpha=weight)
            else:
                left, right = self.codec.factors(record, layer, self.device)
                self._waiting[index].append((left if weight == 1 else left * weight, right))
                if sum(right.shape[0] for _, right in self._waiting[index]) >= TOGETHER:
                    self._multiply(index)

    def take(self) -> list[Tensor]:
        """Return the sum; empty if nothing was added."""
        for index in range(len(self.totals)):
            self._multiply(index)
        return self.totals

    def _multiply(self, index: int) -> None:
        if self._waiting[index]:
            lefts, rights = zip(*self._waiting[index], strict=True)
            self.totals[index].view(self.codec.layers[index].matrix_shape).addmm_(
                torch.cat(lefts, 1), torch.cat(rights)
            )
            self._waiting[index].clear()
