"""Codec `svd`: every matrix cut to the smallest rank above the energy threshold (Wu et al. 2022, Methods)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from fedkd_mpi.codecs import RAW, Codec, State, Sum, floats, raw, read_floats, read_numbers
from fedkd_mpi.errors import RunFault
from fedkd_mpi.factorization import Factors, exact_each, fast
from fedkd_mpi.sections import Compression
from fedkd_mpi.staging import to_device
from fedkd_mpi.wire import Layer, Record, WireError

TOGETHER = 96  # sum of ranks from which more factors side by side make no faster product
ENTRIES = 2**16  # numbers that small layers may collect
LOW_RANK = 1  # U diag(s) [P, K] then V [K, Q], float32

Numbers = TypeVar("Numbers", np.ndarray, Tensor)


class Svd(Codec):
    """U diag(s) and V of each matrix, 4 K (P + Q) bytes; raw where that is not smaller, and for 1-D tensors."""

    def __init__(self, compression: Compression, layers: Sequence[Layer]):
        self.layers, self.warm = layers, bool(compression.warm_start)
        self._shapes = [layer.matrix_shape if layer.compressible else None for layer in layers]

    def encode(
        self, update: Sequence[Tensor], threshold: float, state: State, rng: np.random.Generator
    ) -> list[Record]:
        """Return the records at energy threshold T.

        With compression.warm_start the sender's state keeps U diag(s) ("left.<layer>"); else nothing is remembered.
        """
        return self._records(update, iter(self._factors(update, threshold, state)))

    def encode_each(
        self,
        updates: Sequence[Sequence[Tensor]],
        threshold: float,
        states: Sequence[State],
        rngs: Iterable[np.random.Generator],
    ) -> Iterator[list[Record]]:
        """Yield the records of each update; on a CPU, without a warm start, matrices of all are factorised together."""
        matrices = [matrix for update in updates for matrix in self._matrices(update)]
        if not (self.warm or (matrices and matrices[0].is_cuda)):
            try:
                found = iter(exact_each(matrices, threshold))
            except ValueError:
                pass  # one is not finite: whose, and which layer, is said below, when its turn comes
            else:
                for update in updates:
                    yield self._records(update, found)
                return
        yield from super().encode_each(updates, threshold, states, rngs)

    def decode(self, records: Sequence[Record], device: str) -> list[Tensor]:
        """Return the tensors; raises WireError on an unknown encoding, an impossible rank or a wrong length."""
        return [self._decode(record, layer, device) for record, layer in zip(records, self.layers, strict=True)]

    def _matrices(self, update: Sequence[Tensor]) -> list[Tensor]:
        pairs = zip(update, self._shapes, strict=True)
        return [part if part.dim() == 2 else part.reshape(shape) for part, shape in pairs if shape]

    def _records(self, update: Sequence[Tensor], found: Iterator[Factors]) -> list[Record]:
        pairs = zip(update, self._shapes, strict=True)
        return [_record(part, next(found)) if shape else raw(part) for part, shape in pairs]

    def _factors(self, update: Sequence[Tensor], threshold: float, state: State) -> list[Factors]:
        """The factors of the layers that are matrices; raises RunFault naming one that is not finite."""
        layers, matrices = [layer for layer in self.layers if layer.compressible], self._matrices(update)
        try:
            if not self.warm:
                return exact_each(matrices, threshold)
            keys = [f"left.{layer.name}" for layer in layers]
            found = [fast(matrix, threshold, state.get(key)) for matrix, key in zip(matrices, keys, strict=True)]
            state.update(zip(keys, (factors.left for factors in found), strict=True))
        except ValueError as error:
            wrong = next(layer for layer, part in zip(layers, matrices, strict=True) if not torch.isfinite(part).all())
            raise RunFault(str(error), layer=wrong.name) from None
        return found

    def _decode(self, record: Record, layer: Layer, device: str) -> Tensor:
        numbers = read_floats(record, layer, self.entries(record, layer), device)
        if record.encoding != RAW:
            left, right = split(numbers, record.rank, layer)
            numbers = left @ right
        return numbers.reshape(layer.shape)

    def entries(self, record: Record, layer: Layer) -> int:
        """Return how many numbers a record holds; raises WireError on an unknown encoding or an impossible rank."""
        if record.encoding == RAW:
            return layer.numel
        if record.encoding != LOW_RANK or not layer.compressible:
            raise WireError(f"layer {layer.name}: encoding {record.encoding} is unknown to codec svd")
        rows, columns = layer.matrix_shape
        if not 0 <= record.rank <= min(rows, columns):
            raise WireError(f"layer {layer.name}: rank {record.rank} of a {rows} x {columns} matrix")
        return record.rank * (rows + columns)

    def sum(self, device: str) -> Sum:
        """Return a sum that multiplies the factors of several messages at once."""
        return FactoredSum(self, device)


def _record(tensor: Tensor, factors: Factors) -> Record:
    if factors.numbers.numel() >= tensor.numel():
        return raw(tensor)
    return Record(LOW_RANK, factors.rank, floats(factors.numbers), factors.energy)


def split(numbers: Numbers, rank: int, layer: Layer) -> tuple[Numbers, Numbers]:
    """Return U diag(s) and V, views of the numbers of a record."""
    rows, columns = layer.matrix_shape
    return numbers[: rows * rank].reshape(rows, rank), numbers[rows * rank :].reshape(rank, columns)


@dataclass
class _Pile:
    """Factors of one layer on the host, side by side: `rank` and `entries` of all of them together."""

    lefts: list[np.ndarray] = field(default_factory=list)
    rights: list[np.ndarray] = field(default_factory=list)
    rank: int = 0
    entries: int = 0


class FactoredSum(Sum):
    """Collects factors, side by side, and adds their product when their ranks together come to TOGETHER.

    One product of wide factors is faster than many of narrow ones, and no dense tensor is made of a single message. A
    raw tensor is one row, with the weight as its left factor. No pile grows beyond its layer, or ENTRIES.
    """

    codec: Svd

    def __init__(self, codec: Svd, device: str):
        super().__init__(codec, device)
        self._piles: dict[tuple[int, int], _Pile] = {}  # by layer and number of rows

    def add(self, records: Sequence[Record], weight: float) -> None:
        """Add weight times a message; raises WireError, naming the layer, if a record does not fit."""
        layers = self.codec.layers
        self.totals = self.totals or [torch.zeros(layer.shape, device=self.device) for layer in layers]
        factor = np.full((1, 1), weight, np.float32)
        for index, (record, layer) in enumerate(zip(records, layers, strict=True)):
            numbers = read_numbers(record, layer, self.codec.entries(record, layer))
            if record.encoding == RAW:
                left, right = factor, numbers[None]
            else:
                left, right = split(numbers, record.rank, layer)
                left = left if weight == 1 else left * factor
            pile = self._piles.setdefault((index, len(left)), _Pile())
            pile.lefts.append(left)
            pile.rights.append(right)
            pile.rank += len(right)
            pile.entries += numbers.size
            if pile.rank >= TOGETHER or pile.entries >= max(layer.numel, ENTRIES):
                self._multiply(index, len(left))

    def take(self) -> list[Tensor]:
        """Return the sum; empty if nothing was added."""
        for index, rows in sorted(self._piles):
            self._multiply(index, rows)
        return self.totals

    def _multiply(self, index: int, rows: int) -> None:
        pile = self._piles.pop((index, rows))
        parts = np.concatenate(pile.lefts, axis=1), np.concatenate(pile.rights)
        left, right = (to_device(torch.from_numpy(part), self.device) for part in parts)
        self.totals[index].view(rows, -1).addmm_(left, right)
