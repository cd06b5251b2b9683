"""Codec `topk`: the entries of largest magnitude of each tensor, with their places and values of 1, 2, 8 or 32 bits."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedkd_mpi.codecs import BuiltIn, State, places, raw, read_raw, require
from fedkd_mpi.codecs.rice import bits_of, numbers_of
from fedkd_mpi.codecs.tags import RAW, SPARSE
from fedkd_mpi.codecs.wire import Record, WireError
from fedkd_mpi.config.compression import CompressionConfig
from fedkd_mpi.linalg.layout import canonical
from fedkd_mpi.models.layer import Layer

LEVELS = {1: 1, 2: 2, 8: 2, 32: 0}  # float32 numbers of a record that say what its values stand for, by bits per value


class TopK(BuiltIn):
    """The share `density` of the entries; a contraction: |x - C(x)|^2 <= (1 - k/n) |x|^2; meant for error feedback.

    Aji and Heafield 2017; Stich, Cordonnier and Jaggi 2018. With bits=1 a value is a sign times the mean magnitude of
    all k that are sent (STC, Sattler et al. 2019): |x - C(x)|^2 = |x|^2 - (sum of the k magnitudes)^2 / k. With bits=2
    there are two magnitudes, the best for squared errors. With bits=8 there are 128 between the least and the largest.
    The threshold is not used.
    """

    def __init__(self, compression: CompressionConfig, layers: Sequence[Layer]):
        self.layers, self.density = layers, compression.density or 0.01
        self.bits = int(compression.bits or 32)

    def encode(
        self, update: Sequence[Tensor], threshold: float, state: State, rng: np.random.Generator
    ) -> list[Record]:
        """Return the records; of each tensor at least one entry is sent, but no zeros."""
        counts = [min(share(self.density, tensor.numel()), int(tensor.count_nonzero())) for tensor in update]
        return [sparse(tensor, count, self.bits) for tensor, count in zip(update, counts, strict=True)]

    def decode(self, records: Sequence[Record], device: str) -> list[Tensor]:
        """Return the tensors; raises WireError if places or values are invalid."""
        pairs = zip(records, self.layers, strict=True)
        return [read_sparse(record, layer, self.bits).to(device) for record, layer in pairs]


def share(density: float, count: int) -> int:
    """Return the number of entries for a density, at least one; 0.07 of 100 is 7, in spite of rounding errors."""
    return min(max(math.ceil(density * count * (1 - 1e-12)), 1), count)


def sparse(tensor: Tensor, count: int, bits: int = 32) -> Record:
    """Return the record of the `count` largest entries, or of the raw tensor if that is not larger."""
    flat = canonical(tensor).reshape(-1)
    indices = flat.abs().topk(count).indices.sort().values
    values = flat[indices].cpu().numpy()
    levels, codes = _narrow(values, bits)
    data = b"".join([_varint(count), levels.tobytes(), places.encode(indices.cpu().numpy()), codes.tobytes()])
    data = data if count else b""
    if len(data) >= 4 * flat.numel():
        return raw(tensor)
    exact = flat.cpu().numpy().astype(np.float64)
    total = float(np.square(exact).sum())
    lost = total - float(np.square(values, dtype=np.float64).sum())
    lost += float(np.square(values - _widen(levels, codes, count, bits).astype(np.float64)).sum())
    return Record(SPARSE, -1, np.frombuffer(data, np.uint8), 1 - lost / total if total else 1.0)


def read_sparse(record: Record, layer: Layer, bits: int = 32) -> Tensor:
    """Return the tensor of a record of sparse(); raises WireError naming the layer if the record is invalid."""
    if record.encoding == RAW:
        return read_raw(record, layer)
    require(record, layer, "topk", SPARSE)
    dense = np.zeros(layer.numel, np.float32)
    try:
        if record.data.size >= max(4 * layer.numel, 1):  # larger records are sent raw instead
            raise WireError(f"{record.data.size} bytes of entries, where the raw tensor has {4 * layer.numel}")
        if record.data.size:
            indices, values = _parse(record.data, layer.numel, bits)
            dense[indices] = values
    except WireError as error:
        raise WireError(f"layer {layer.name}: {error}") from None
    return torch.from_numpy(dense).reshape(layer.shape)


def _parse(data: np.ndarray, numel: int, bits: int) -> tuple[np.ndarray, np.ndarray]:
    count, at = _read_varint(data)
    if not 0 < count <= numel:
        raise WireError(f"{count} entries of {numel}")
    start, end = at + 4 * LEVELS[bits], data.size - -(-count * bits // 8)
    if end < start:
        raise WireError(f"{data.size} bytes do not hold {count} entries")
    levels = np.frombuffer(data[at:start].tobytes(), "<f4")
    if not np.isfinite(levels).all() or (levels < 0).any() or (np.diff(levels) < 0).any():
        raise WireError("the magnitudes of entries are not finite, negative or out of order")
    indices = places.decode(data[start:end], count, numel)
    return indices, _widen(levels, data[end:], count, bits)


def _narrow(values: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the magnitudes (float32) that the values are given and their codes (uint8), a sign and an index each."""
    if bits == 32:
        return np.empty(0, "<f4"), values.astype("<f4").view(np.uint8)
    sizes = np.abs(values).astype(np.float64)
    index = np.zeros(sizes.size, np.int64)
    levels = [float(sizes.mean())] if bits == 1 and sizes.size else [0.0] * LEVELS[bits]
    if bits == 2 and sizes.size:
        index = (sizes >= _best_split(sizes)).astype(np.int64)
        levels = [float(sizes[index == side].mean()) if (index == side).any() else 0.0 for side in (0, 1)]
    elif bits == 8 and sizes.size:
        levels = [float(sizes.min()), float(sizes.max())]
        index = np.rint((sizes - levels[0]) / ((levels[1] - levels[0]) or 1.0) * 127).astype(np.int64)
    return np.array(levels, "<f4"), np.packbits(bits_of((values < 0) + 2 * index, bits))


def _best_split(sizes: np.ndarray) -> float:
    """Return the least of the large magnitudes, where two means leave the smallest squared error."""
    falling = np.sort(sizes)[::-1]
    sums, counts = np.cumsum(falling), np.arange(1, falling.size + 1)
    held = sums**2 / counts
    held[:-1] += (sums[-1] - sums[:-1]) ** 2 / (falling.size - counts[:-1])
    return float(falling[int(np.argmax(held))])


def _widen(levels: np.ndarray, codes: np.ndarray, count: int, bits: int) -> np.ndarray:
    """Return the values (float32) of the output of _narrow()."""
    if bits == 32:
        return np.frombuffer(codes.tobytes(), "<f4")
    numbers = numbers_of(np.unpackbits(codes)[: count * bits], count, bits)
    low, high = float(levels[0]), float(levels[-1])
    steps = 2 ** (bits - 1) - 1
    sizes = low + (numbers >> 1) * ((high - low) / max(steps, 1))
    return np.where(numbers & 1, -sizes, sizes).astype(np.float32)


def _varint(number: int) -> bytes:
    out = []
    while number >= 128:
        out.append(number % 128 + 128)
        number //= 128
    return bytes([*out, number])


def _read_varint(data: np.ndarray) -> tuple[int, int]:
    """Return the number and how many bytes it takes."""
    number = 0
    for at, byte in enumerate(data[:5].tolist()):
        number |= (byte & 127) << (7 * at)
        if byte < 128:
            return number, at + 1
    raise WireError("the number of entries has no end")
