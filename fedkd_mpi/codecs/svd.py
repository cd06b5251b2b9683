"""Codec `svd`: every matrix truncated to the smallest rank above the energy threshold (Wu et al. 2022, Methods)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from fedkd_mpi.codecs import BuiltIn, State, Sum, floats, raw
from fedkd_mpi.codecs.staging import to_device
from fedkd_mpi.codecs.tags import LOW_RANK, RAW
from fedkd_mpi.codecs.wire import Record, WireError
from fedkd_mpi.common.remembered import Kind, Memory
from fedkd_mpi.config.compression import CompressionConfig
from fedkd_mpi.errors import RunFault
from fedkd_mpi.linalg.layout import canonical
from fedkd_mpi.linalg.low_rank import Factors, exact_each, fast, kept_energy
from fedkd_mpi.models.layer import Layer

ENTRIES = 2**18  # numbers collected before messages are added; with fewer, call overhead would dominate
NUMBER = np.dtype("<f4")
ROUNDING = 1e-7  # share of the energy that rounding the factors to float32 may lose

Part = bytes | np.ndarray  # data of a record


class Svd(BuiltIn):
    """U diag(s) and V of each matrix, 4 K (P + Q) bytes; raw if that is not larger, and for 1-D tensors."""

    paper_rank = True

    def __init__(self, compression: CompressionConfig, layers: Sequence[Layer]):
        self.layers, self.warm = layers, bool(compression.warm_start)
        self.sizes = [self._bytes(layer) for layer in layers]
        self._shapes = [layer.matrix_shape if layer.compressible else None for layer in layers]

    def encode(
        self, update: Sequence[Tensor], threshold: float, state: State, rng: np.random.Generator
    ) -> list[Record]:
        """Return the records at energy threshold T.

        With compression.warm_start the sender's state contains U diag(s) ("left.<layer>"), otherwise nothing.
        """
        return self._records(update, iter(self._factors(update, threshold, state)), threshold)

    def encode_each(
        self,
        updates: Sequence[Sequence[Tensor]],
        threshold: float,
        states: Sequence[State],
        rngs: Iterable[np.random.Generator],
    ) -> Iterator[list[Record]]:
        """Yield the records of each update; on a CPU without a warm start, all matrices are factorised at once."""
        matrices = [matrix for update in updates for matrix in self._matrices(update)]
        if not (self.warm or (matrices and matrices[0].is_cuda)):
            try:
                found = iter(exact_each(matrices, threshold))
            except ValueError:
                pass  # one matrix is not finite; the fallback below raises the error of its sender and layer
            else:
                for update in updates:
                    yield self._records(update, found, threshold)
                return
        yield from super().encode_each(updates, threshold, states, rngs)

    def decode(self, records: Sequence[Record], device: str) -> list[Tensor]:
        """Return the tensors; raises WireError if an encoding, rank or length is invalid."""
        for record, layer, sizes in zip(records, self.layers, self.sizes, strict=True):
            if not fits(record, sizes):
                raise self.misfit(record, layer)
        if not records:
            return []
        counts = [record.data.size // 4 for record in records]
        numbers = torch.empty(sum(counts))  # aligned to 64 bytes: the rounding of BLAS depends on alignment
        np.concatenate([record.data for record in records], out=numbers.numpy().view(np.uint8))
        parts = to_device(numbers, device).split(counts)
        return [self._decode(*each) for each in zip(records, parts, self.layers, strict=True)]

    def sum(self, device: str) -> Sum:
        """Return a sum that multiplies the factors of several messages at once."""
        return FactoredSum(self, device)

    def sender_memory(self) -> Memory:
        """Return what a sender remembers: with a warm start, the left factor of each matrix."""
        matrices = [layer for layer in self.layers if layer.compressible and self.warm]
        return Memory({f"left.{layer.name}": Kind((layer.matrix_shape[0], None)) for layer in matrices})

    def misfit(self, record: Record, layer: Layer) -> WireError:
        """Return the error of an invalid record: its encoding, its rank or its length."""
        rows, columns = layer.matrix_shape
        if record.encoding != RAW and not (record.encoding == LOW_RANK and layer.compressible):
            return WireError(f"layer {layer.name}: encoding {record.encoding} is unknown to codec svd")
        if record.encoding == RAW and record.rank != -1:
            return WireError(f"layer {layer.name}: rank {record.rank} in a raw record, which has no rank")
        if record.encoding == LOW_RANK and not 0 <= record.rank <= min(rows, columns):
            return WireError(f"layer {layer.name}: rank {record.rank} of a {rows} x {columns} matrix")
        count = 4 * (layer.numel if record.encoding == RAW else record.rank * (rows + columns))
        return WireError(f"layer {layer.name}: {record.data.size} bytes instead of {count}")

    def _matrices(self, update: Sequence[Tensor]) -> list[Tensor]:
        pairs = zip(update, self._shapes, strict=True)
        return [part if part.dim() == 2 else part.reshape(shape) for part, shape in pairs if shape]

    def _records(self, update: Sequence[Tensor], found: Iterator[Factors], threshold: float) -> list[Record]:
        pairs = zip(update, self._shapes, strict=True)
        return [_record(part, next(found), threshold) if shape else raw(part) for part, shape in pairs]

    def _factors(self, update: Sequence[Tensor], threshold: float, state: State) -> list[Factors]:
        """Return the factors of the matrices; raises RunFault naming a layer that is not finite."""
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

    def _decode(self, record: Record, numbers: Tensor, layer: Layer) -> Tensor:
        if record.encoding != RAW:
            rows, columns = layer.matrix_shape
            cut = rows * record.rank
            numbers = numbers[:cut].view(rows, record.rank) @ numbers[cut:].view(record.rank, columns)
        return numbers.view(layer.shape)

    @staticmethod
    def _bytes(layer: Layer) -> tuple[int, int, int]:
        rows, columns = layer.matrix_shape
        return 4 * layer.numel, 4 * (rows + columns), min(rows, columns) if layer.compressible else -1


def _record(tensor: Tensor, factors: Factors, threshold: float) -> Record:
    paper_rank = factors.rank
    if factors.rank and factors.energy < threshold + ROUNDING and threshold < 1:
        factors = _checked(tensor.reshape(factors.shape), factors, threshold)
    if factors.numbers.numel() >= tensor.numel() or (threshold < 1 and not factors.energy >= threshold):
        return raw(tensor)._replace(paper_rank=paper_rank)
    return Record(LOW_RANK, factors.rank, floats(factors.numbers), factors.energy, paper_rank)


def _checked(matrix: Tensor, factors: Factors, threshold: float) -> Factors:
    """Return factors with the energy that they keep in float32, of a higher rank if that energy is too low."""
    for wanted in (threshold + ROUNDING, threshold + 10 * ROUNDING):
        factors = factors._replace(energy=kept_energy(matrix, factors))
        if factors.energy >= threshold or wanted >= 1:
            break
        factors = exact_each([matrix], wanted)[0]
    return factors


def fits(record: Record, sizes: tuple[int, int, int]) -> bool:
    """Whether a record is valid for a layer.

    `sizes` are the layer's bytes when raw, its bytes per rank when factorised, and its largest rank (-1: no matrix).
    """
    encoding, rank, data, *_ = record
    if encoding == LOW_RANK:
        return 0 <= rank <= sizes[2] and data.size == rank * sizes[1]
    return encoding == RAW and rank == -1 and data.size == sizes[0]


class FactoredSum(Sum):
    """Collects messages and adds them at once: the factors of a layer are concatenated for one matrix product.

    One product of wide factors is faster than many products of narrow ones, and no message is expanded to dense
    tensors. For raw tensors, the weights are the left factor. At most ENTRIES numbers, or a quarter of the numbers of
    an update if that is more, are collected.
    """

    codec: Svd

    def __init__(self, codec: Svd, device: str):
        super().__init__(codec, device)
        numbers = [0 if layer.compressible else layer.numel for layer in codec.layers]
        self._vectors = torch.zeros(sum(numbers), device=device)  # the totals of layers that are not matrices
        self._each = self._vectors.split(numbers)
        self._waiting: list[tuple[float, list[int], Sequence[Part], bytes]] = []  # weight, ranks, matrices, vectors
        self._most = self._room = 4 * max(ENTRIES, sum(layer.numel for layer in codec.layers) // 4)

    def add(self, records: Sequence[Record], weight: float) -> None:
        """Add `weight` times a message; raises WireError naming the layer if a record is invalid for it."""
        ranks: list[int] = []
        parts: list[np.ndarray] = []
        vectors: list[memoryview] = []
        for record, layer, sizes in zip(records, self.codec.layers, self.codec.sizes, strict=True):
            if not fits(record, sizes):
                raise self.codec.misfit(record, layer)
            if layer.compressible:
                ranks.append(-1 if record.encoding == RAW else record.rank)
                parts.append(record.data)
            else:
                vectors.append(record.data.data)
            self._room -= record.data.size
        # copies, so that the memory of the whole message can be freed
        held: Sequence[Part] = [part.tobytes() for part in parts] if self._room > 0 else parts
        self._waiting.append((weight, ranks, held, b"".join(vectors)))
        if self._room <= 0:
            self._multiply()

    def take(self) -> list[Tensor]:
        """Return the sum; empty if nothing was added."""
        if self._waiting:
            self._multiply()
        return self.totals

    def _multiply(self) -> None:
        layers = self.codec.layers
        self.totals = self.totals or [
            part.view(layer.shape) if not layer.compressible else torch.zeros(layer.shape, device=self.device)
            for layer, part in zip(layers, self._each, strict=True)
        ]
        waiting, self._waiting, self._room = self._waiting, [], self._most
        if len(self._vectors):
            self._add_raw(self._vectors, [(weight, vectors) for weight, _, _, vectors in waiting])
        matrices = (total for total, layer in zip(self.totals, layers, strict=True) if layer.compressible)
        for index, total in enumerate(matrices):
            of_layer = [(weight, ranks[index], parts[index]) for weight, ranks, parts, _ in waiting]
            if whole := [(weight, part) for weight, rank, part in of_layer if rank < 0]:
                self._add_raw(total.view(-1), whole)
            if factors := [each for each in of_layer if each[1] > 0]:
                self._add_factors(total.view(len(total), -1), factors)

    def _add_raw(self, total: Tensor, tensors: Sequence[tuple[float, Part]]) -> None:
        weights, parts = zip(*tensors, strict=True)
        self._add_product(total[None], canonical(torch.from_numpy(np.array([weights], np.float32))), parts)

    def _add_factors(self, total: Tensor, factors: Sequence[tuple[float, int, Part]]) -> None:
        (weights, ranks, parts), rows = zip(*factors, strict=True), len(total)
        left = torch.empty(rows, sum(ranks))
        lefts = [np.ndarray((rows, rank), NUMBER, part) for rank, part in zip(ranks, parts, strict=True)]
        np.concatenate(lefts, axis=1, out=left.numpy())
        if set(weights) != {1}:
            left *= torch.from_numpy(np.repeat(np.array(weights, np.float32), ranks))
        cuts = [memoryview(part)[4 * rows * rank :] for rank, part in zip(ranks, parts, strict=True)]
        self._add_product(total, left, cuts)

    def _add_product(self, total: Tensor, left: Tensor, rights: Sequence[Part | memoryview]) -> None:
        right = torch.empty(left.shape[1], total.shape[1])  # aligned to 64 bytes, as in decode()
        np.concatenate([np.frombuffer(part, NUMBER) for part in rights], out=right.view(-1).numpy())
        total.addmm_(to_device(left, self.device), to_device(right, self.device))
