"""Codec `ternary`: minus, nothing or plus one magnitude per entry, entropy-coded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedkd_mpi.codecs import symbols
from fedkd_mpi.codecs.per_tensor import PerTensor, magnitude_of
from fedkd_mpi.codecs.tags import TERNARY
from fedkd_mpi.codecs.wire import WireError
from fedkd_mpi.config.compression import CompressionConfig
from fedkd_mpi.models.layer import Layer


class Ternary(PerTensor):
    """Every entry is -m, 0 or m, with one magnitude m per tensor.

    With error feedback the entries that are not zero and m are those of the least squared error: |x - C(x)|^2 =
    |x|^2 - max over k of (sum of the k largest |x_i|)^2 / k (Li, Zhang and Liu 2016, ternary weight networks, solved
    exactly). Without, m is the largest magnitude and an entry is +-m with probability |x_i| / m, which is unbiased
    (TernGrad, Wen et al. 2017). The threshold is not used.
    """

    name, encoding = "ternary", TERNARY

    def __init__(self, compression: CompressionConfig, layers: Sequence[Layer]):
        self.layers, self.unbiased = layers, compression.error_feedback == "none"

    def pack(self, values: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float]:
        """Return the magnitude and the coded signs, and the share of the energy that is kept."""
        sizes = np.abs(values)
        if self.unbiased:
            magnitude = sizes.max()
            sent = rng.random(sizes.size) * np.float64(magnitude) < sizes
        else:
            sent = sizes >= _least_sent(sizes)
            magnitude = np.float32(sizes[sent].mean(dtype=np.float64))
        integers = np.sign(values).astype(np.int16) * sent
        lost = np.square(values - integers * np.float64(magnitude)).sum()
        data = np.concatenate([np.array([magnitude], "<f4").view(np.uint8), symbols.encode([integers[None]])])
        return data, float(1 - lost / np.square(values, dtype=np.float64).sum())

    def unpack(self, data: np.ndarray, count: int) -> np.ndarray:
        """Return the entries; raises WireError if the magnitude or a symbol is invalid."""
        magnitude = magnitude_of(data)
        (integers,) = symbols.decode(data[4:], [(1, count)])
        if integers.size and int(np.abs(integers).max()) > 1:
            raise WireError("a symbol is out of its range")
        return (integers.reshape(-1) * magnitude).astype(np.float32)


def _least_sent(sizes: np.ndarray) -> float:
    """Return the smallest magnitude that is sent where the squared error is the least."""
    falling = np.sort(sizes)[::-1]
    held = np.square(np.cumsum(falling, dtype=np.float64)) / np.arange(1, falling.size + 1)
    return float(falling[int(np.argmax(held))])
