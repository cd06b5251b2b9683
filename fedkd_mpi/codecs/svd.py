"""Codec `svd`: every matrix cut to the smallest rank above the energy threshold (Wu et al. 2022, Methods)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from fedkd_mpi.codecs import RAW, Codec, State, Sum, floats, raw, read_floats
from fedkd_mpi.errors import RunFault
from fedkd_mpi.factorization import Factors, exact_each, fast
from fedkd_mpi.sections import Compression
from fedkd_mpi.staging import to_device
from fedkd_mpi.wire import Layer, Record, WireError

TOGETHER = 96  # sum of ranks from which more factors side by side make no faster product
ENTRIES = 2**16  # numbers up to which a product takes less time than its call does: small layers collect so many
VECTORS = -1  # stands for all layers that are no matrices
LOW_RANK = 1  # U diag(s) [P, K] then V [K, Q], float32

Numbers = TypeVar("Numbers", np.ndarray, Tensor)


class Svd(Codec):
    """U diag(s) and V of each matrix, 4 K (P + Q) bytes; raw where that is not smaller, and for 1-D tensors."""

    def __init__(self, compression: Compression, layers: Sequence[Layer]):
        self.layers, self.warm = layers, bool(compression.warm_start)
        self._sizes = [(layer.numel, *layer.matrix_shape) for layer in layers]

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
        if not (self.warm or any(matrix.is_cuda for matrix in matrices)):
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
        tensors = []
        for index, (record, layer) in enumerate(zip(records, self.layers, strict=True)):
            self.require(record, index)
            numbers = read_floats(record, layer, record.data.size // 4, device)
            if record.encoding != RAW:
                left, right = split(numbers, record.rank, layer)
                numbers = left @ right
            tensors.append(numbers.reshape(layer.shape))
        return tensors

    def _matrices(self, update: Sequence[Tensor]) -> list[Tensor]:
        pairs = zip(update, self.layers, strict=True)
        return [part.reshape(layer.matrix_shape) for part, layer in pairs if layer.compressible]

    def _records(self, update: Sequence[Tensor], found: Iterator[Factors]) -> list[Record]:
        pairs = zip(update, self.layers, strict=True)
        return [_record(part, next(found)) if layer.compressible else raw(part) for part, layer in pairs]

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

    def require(self, record: Record, index: int) -> None:
        """Raise WireError, naming the layer, on an unknown encoding, an impossible rank or a wrong length."""
        (numel, rows, columns), layer = self._sizes[index], self.layers[index]
        if record.encoding == RAW:
            count = numel
        elif record.encoding != LOW_RANK or not layer.compressible:
            raise WireError(f"layer {layer.name}: encoding {record.encoding} is unknown to codec svd")
        elif not 0 <= record.rank <= min(rows, columns):
            raise WireError(f"layer {layer.name}: rank {record.rank} of a {rows} x {columns} matrix")
        else:
            count = record.rank * (rows + columns)
        if record.data.size != 4 * count:
            raise WireError(f"layer {layer.name}: {record.data.size} bytes where {4 * count} belong")

    def sum(self, device: str) -> Sum:
        """Return a sum that multiplies the factors of several messages at once."""
        return FactoredSum(self, device)


def _record(tensor: Tensor, factors: Factors) -> Record:
    entries = factors.left.numel() + factors.right.numel()
    if entries >= tensor.numel():
        return raw(tensor)
    return Record(LOW_RANK, factors.rank, floats(factors.left, factors.right), factors.energy)


def split(numbers: Numbers, rank: int, layer: Layer) -> tuple[Numbers, Numbers]:
    """Return U diag(s) and V, views of the numbers of a record."""
    rows, columns = layer.matrix_shape
    return numbers[: rows * rank].reshape(rows, rank), numbers[rows * rank :].reshape(rank, columns)


@dataclass
class _Pile:
    """Records of one layer on the host, as they came; `rank` and `entries` of all together, a raw one's rank is 1."""

    numel: int
    parts: list[bytes] = field(default_factory=list)
    ranks: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    rank: int = 0
    entries: int = 0


class FactoredSum(Sum):
    """Collects factors, side by side, and adds their product when their ranks together come to TOGETHER.

    One product of wide factors is faster than many of narrow ones, and no dense tensor is made of a single message. Of
    raw tensors the weights are the left factor; those that are no matrices are collected as one. No pile grows beyond
    its layer, or ENTRIES.
    """

    codec: Svd

    def __init__(self, codec: Svd, device: str):
        super().__init__(codec, device)
        self._piles: dict[tuple[int, bool], _Pile] = {}  # by layer, and whether its records are raw
        self._vectors = torch.zeros(sum(layer.numel for layer in codec.layers if not layer.compressible), device=device)

    def add(self, records: Sequence[Record], weight: float) -> None:
        """Add weight times a message; raises WireError, naming the layer, if a record does not fit."""
        self.totals = self.totals or self._zeros()
        vectors = []
        for index, (record, layer) in enumerate(zip(records, self.codec.layers, strict=True)):
            self.codec.require(record, index)
            if not layer.compressible:
                vectors.append(record.data)
            elif record.encoding == RAW:
                self._collect((index, True), record.data.tobytes(), 1, weight)
            elif record.rank:
                self._collect((index, False), record.data.tobytes(), record.rank, weight)
        if vectors:
            self._collect((VECTORS, True), b"".join(vectors), 1, weight)

    def take(self) -> list[Tensor]:
        """Return the sum; empty if nothing was added."""
        for key in sorted(self._piles):
            self._multiply(key)
        return self.totals

    def _zeros(self) -> list[Tensor]:
        """The totals of all layers; those that are no matrices lie side by side, as they are added up."""
        layers, at, totals = self.codec.layers, 0, []
        for layer in layers:
            if layer.compressible:
                totals.append(torch.zeros(layer.shape, device=self.device))
            else:
                totals.append(self._vectors[at : at + layer.numel].view(layer.shape))
                at += layer.numel
        return totals

    def _collect(self, key: tuple[int, bool], part: bytes, rank: int, weight: float) -> None:
        pile = self._piles.get(key)
        if pile is None:
            total = self._vectors if key[0] == VECTORS else self.totals[key[0]]
            pile = self._piles[key] = _Pile(total.numel())
        pile.parts.append(part)
        pile.ranks.append(rank)
        pile.weights.append(weight)
        pile.rank += rank
        pile.entries += len(part) // 4
        if pile.entries >= ENTRIES and (pile.rank >= TOGETHER or pile.entries >= pile.numel):
            self._multiply(key)

    def _multiply(self, key: tuple[int, bool]) -> None:
        pile, (index, is_raw) = self._piles.pop(key), key
        total = self._vectors if index == VECTORS else self.totals[index]
        weights = np.array(pile.weights, np.float32)
        if is_raw:
            left = weights[None]
            right = np.frombuffer(bytearray().join(pile.parts), "<f4").reshape(len(pile.parts), -1)
        else:
            rows, columns = self.codec.layers[index].matrix_shape
            each = list(zip(pile.parts, pile.ranks, strict=True))
            left = np.concatenate([np.ndarray((rows, rank), "<f4", part) for part, rank in each], axis=1)
            left *= weights.repeat(pile.ranks)
            right = np.concatenate([np.ndarray((rank, columns), "<f4", part, 4 * rows * rank) for part, rank in each])
        left, right = (to_device(torch.from_numpy(factor), self.device) for factor in (left, right))
        total.view(len(left), -1).addmm_(left, right)
