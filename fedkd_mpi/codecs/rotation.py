"""Random rotations of a vector by Hadamard matrices, after which its entries are nearly normal, without padding.

A vector is split into blocks, each rotated by itself. Blocks have SIDE entries and are interleaved (entry i is in block
i mod their number), so that they have about equal energy. The last block has the rest, between SIDE and 2 SIDE entries,
or all of a shorter vector. A Hadamard matrix has a power of two of rows. Where the last block has another length, its
head and its tail of the largest power of two are rotated in turn, which is orthogonal too.
"""

from __future__ import annotations

import math

import numpy as np

from fedkd_mpi.common.random_streams import generator

SIDE = 2**14  # a larger one takes longer; a smaller one has more scales to send
TURNS = 2  # one Hadamard matrix leaves vectors of few non-zero entries with few different values


class Rotation:
    """The rotation of vectors of `count` entries that belongs to a seed; the same on every process."""

    def __init__(self, count: int, seed: int):
        self.columns = max(count // SIDE - 1, 0) if count % SIDE else count // SIDE
        self.rest = count - SIDE * self.columns
        stream = generator(0, "rotation of entries", seed)
        self._even = [_signs(stream, SIDE) for _ in range(TURNS if self.columns else 0)]
        whole = 1 << (self.rest.bit_length() - 1) if self.rest else 0
        ends = [slice(0, whole), slice(self.rest - whole, self.rest)] * TURNS
        turns = TURNS if whole == self.rest else 2 * TURNS
        self._odd = [(end, _signs(stream, whole)) for end in ends[:turns] if whole]

    def forward(self, flat: np.ndarray) -> list[np.ndarray]:
        """Return the rotated float32 vector: [SIDE, blocks] and the last block [rest, 1], those of them that exist."""
        even, odd = self._split(flat.copy())
        for signs in self._even:
            even *= signs
            _hadamard(even)
        for end, signs in self._odd:
            odd[end] *= signs
            _hadamard(odd[end])
        return [part for part in (even, odd) if part.size]

    def backward(self, parts: list[np.ndarray]) -> np.ndarray:
        """Return the vector that forward() has turned into `parts`, which must not be empty."""
        flat = np.concatenate([part.reshape(-1) for part in parts])
        even, odd = self._split(flat)
        for signs in reversed(self._even):
            _hadamard(even)
            even *= signs
        for end, signs in reversed(self._odd):
            _hadamard(odd[end])
            odd[end] *= signs
        return flat

    def shapes(self) -> list[tuple[int, int]]:
        """Return the shapes of the parts of forward()."""
        return [shape for shape in ((SIDE, self.columns), (self.rest, 1)) if 0 not in shape]

    def _split(self, flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return both parts as views of the vector."""
        end = SIDE * self.columns
        return flat[:end].reshape(SIDE, self.columns), flat[end:].reshape(self.rest, 1)


def _signs(stream: np.random.Generator, count: int) -> np.ndarray:
    bits = np.unpackbits(np.frombuffer(stream.bytes(-(-count // 8)), np.uint8))[:count]
    return bits[:, None].astype(np.float32) * 2 - 1


def _hadamard(block: np.ndarray) -> None:
    """Multiply the columns of [2^k, columns] by the Hadamard matrix, orthonormal, in place; sums of two at a time."""
    rows, columns = block.shape
    step = 1
    while step < rows:
        pairs = block.reshape(rows // (2 * step), 2, step * columns)
        difference = pairs[:, 0] - pairs[:, 1]
        pairs[:, 0] += pairs[:, 1]
        pairs[:, 1] = difference
        step *= 2
    block *= np.float32(1 / math.sqrt(rows))
