"""Codec `sign`: a bit per entry and one magnitude per tensor; meant for error feedback."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedkd_mpi.codecs import BuiltIn, State, raw, read_raw, require
from fedkd_mpi.codecs.tags import RAW, SIGN
from fedkd_mpi.codecs.wire import Record, WireError
from fedkd_mpi.config.compression import CompressionConfig
from fedkd_mpi.linalg.layout import canonical
from fedkd_mpi.models.layer import Layer


class Sign(BuiltIn):
    """Every entry is its sign times the mean magnitude of its tensor (EF-SignSGD, Karimireddy et al. 2019).

    It is a contraction: |x - C(x)|^2 = |x|^2 - (sum of |x_i|)^2 / n <= (1 - 1/n) |x|^2. The threshold is not used.
    """

    def __init__(self, compression: CompressionConfig, layers: Sequence[Layer]):
        self.layers = layers

    def encode(
        self, update: Sequence[Tensor], threshold: float, state: State, rng: np.random.Generator
    ) -> list[Record]:
        """Return the records; a tensor that is not larger raw is sent raw, and of one of zeros nothing."""
        return [_encode(tensor) for tensor in update]

    def decode(self, records: Sequence[Record], device: str) -> list[Tensor]:
        """Return the tensors; raises WireError if an encoding, a length or a magnitude is invalid."""
        return [_decode(record, layer).to(device) for record, layer in zip(records, self.layers, strict=True)]


def _encode(tensor: Tensor) -> Record:
    values = canonical(tensor).cpu().numpy().reshape(-1)
    if values.size and not values.any():
        return Record(SIGN, -1, np.empty(0, np.uint8), 1.0)
    if _size(values.size) >= 4 * values.size:
        return raw(tensor)
    magnitude = np.abs(values).mean(dtype=np.float64).astype("<f4")
    decoded = np.where(values < 0, -magnitude, magnitude)
    lost = np.square(values - decoded.astype(np.float64)).sum() / np.square(values, dtype=np.float64).sum()
    data = np.concatenate([np.array([magnitude], "<f4").view(np.uint8), np.packbits(values < 0)])
    return Record(SIGN, -1, data, float(1 - lost))


def _decode(record: Record, layer: Layer) -> Tensor:
    if record.encoding == RAW:
        return read_raw(record, layer)
    require(record, layer, "sign", SIGN)
    if not record.data.size and layer.numel:
        return torch.zeros(layer.shape)
    if record.data.size != _size(layer.numel):
        raise WireError(f"layer {layer.name}: {record.data.size} bytes instead of {_size(layer.numel)}")
    magnitude = np.frombuffer(record.data[:4].tobytes(), "<f4")[0]
    if not (np.isfinite(magnitude) and magnitude >= 0):
        raise WireError(f"layer {layer.name}: invalid magnitude {magnitude}")
    negative = np.unpackbits(record.data[4:])[: layer.numel].astype(bool)
    return torch.from_numpy(np.where(negative, -magnitude, magnitude)).reshape(layer.shape)


def _size(count: int) -> int:
    return 4 + -(-count // 8)
