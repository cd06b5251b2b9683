"""Codec `sign`: a bit per entry and one magnitude per tensor; meant for error feedback."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedkd_mpi.codecs.per_tensor import PerTensor, magnitude_of
from fedkd_mpi.codecs.tags import SIGN
from fedkd_mpi.codecs.wire import WireError
from fedkd_mpi.config.compression import CompressionConfig
from fedkd_mpi.models.layer import Layer


class Sign(PerTensor):
    """Every entry is its sign times the mean magnitude of its tensor (EF-SignSGD, Karimireddy et al. 2019).

    It is a contraction: |x - C(x)|^2 = |x|^2 - (sum of |x_i|)^2 / n <= (1 - 1/n) |x|^2. The threshold is not used.
    """

    name, encoding = "sign", SIGN

    def __init__(self, compression: CompressionConfig, layers: Sequence[Layer]):
        self.layers = layers

    def pack(self, values: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float]:
        """Return the magnitude and the bits of negative entries, and the share of the energy that is kept."""
        magnitude = np.abs(values).mean(dtype=np.float64).astype("<f4")
        decoded = np.where(values < 0, -magnitude, magnitude)
        lost = np.square(values - decoded.astype(np.float64)).sum() / np.square(values, dtype=np.float64).sum()
        return np.concatenate([np.array([magnitude], "<f4").view(np.uint8), np.packbits(values < 0)]), float(1 - lost)

    def unpack(self, data: np.ndarray, count: int) -> np.ndarray:
        """Return the entries; raises WireError if the length or the magnitude is invalid."""
        if data.size != (size := 4 + -(-count // 8)):
            raise WireError(f"{data.size} bytes instead of {size}")
        magnitude = magnitude_of(data)
        return np.where(np.unpackbits(data[4:])[:count].astype(bool), -magnitude, magnitude)
