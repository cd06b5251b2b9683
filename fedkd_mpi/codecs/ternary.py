"""Codec `ternary`: minus, nothing or plus one magnitude per entry, entropy-coded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedkd_mpi.codecs import BuiltIn, State, raw, read_raw, require, symbols
from fedkd_mpi.codecs.tags import RAW, TERNARY
from fedkd_mpi.codecs.wire import Record, WireError
from fedkd_mpi.config.compression import CompressionConfig
from fedkd_mpi.linalg.layout import canonical
from fedkd_mpi.models.layer import Layer


class Ternary(BuiltIn):
    """Every entry is -m, 0 or m, with one magnitude m per tensor.

    With error feedback the entries that are not zero and m are those of the least squared error: |x - C(x)|^2 =
    |x|^2 - max over k of (sum of the k largest |x_i|)^2 / k (Li, Zhang and Liu 2016, ternary weight networks, solved
    exactly). Without, m is the largest magnitude and an entry is +-m with probability |x_i| / m, which is unbiased
    (TernGrad, Wen et al. 2017). The threshold is not used.
    """

    def __init__(self, compression: CompressionConfig, layers: Sequence[Layer]):
        self.layers, self.unbiased = layers, compression.error_feedback == "none"

    def encode(
        self, update: Sequence[Tensor], threshold: float, state: State, rng: np.random.Generator
    ) -> list[Record]:
        """Return the records; a tensor that is not larger raw is sent raw, and of one of zeros nothing."""
        return [self._encode(tensor, rng) for tensor in update]

    def decode(self, records: Sequence[Record], device: str) -> list[Tensor]:
        """Return the tensors; raises WireError if an encoding, a length, a magnitude or a symbol is invalid."""
        return [_decode(record, layer).to(device) for record, layer in zip(records, self.layers, strict=True)]

    def _encode(self, tensor: Tensor, rng: np.random.Generator) -> Record:
        values = canonical(tensor).cpu().numpy().reshape(-1)
        if values.size and not values.any():
            return Record(TERNARY, -1, np.empty(0, np.uint8), 1.0)
        sizes = np.abs(values)
        if self.unbiased:
            magnitude = sizes.max(initial=0.0)
            sent = rng.random(sizes.size) * np.float64(magnitude) < sizes
        else:
            least = _least_sent(sizes)
            sent = sizes >= least
            magnitude = np.float32(sizes[sent].mean(dtype=np.float64)) if sizes.size else np.float32(0)
        integers = np.sign(values).astype(np.int16) * sent
        data = np.concatenate([np.array([magnitude], "<f4").view(np.uint8), symbols.encode([integers[None]])])
        if data.size >= 4 * values.size:
            return raw(tensor)
        lost = np.square(values - integers * np.float64(magnitude)).sum()
        return Record(TERNARY, -1, data, float(1 - lost / np.square(values, dtype=np.float64).sum()))


def _least_sent(sizes: np.ndarray) -> float:
    """Return the smallest magnitude that is sent where the squared error is the least."""
    falling = np.sort(sizes)[::-1]
    held = np.square(np.cumsum(falling, dtype=np.float64)) / np.arange(1, falling.size + 1)
    return float(falling[int(np.argmax(held))]) if falling.size else 0.0


def _decode(record: Record, layer: Layer) -> Tensor:
    if record.encoding == RAW:
        return read_raw(record, layer)
    require(record, layer, "ternary", TERNARY)
    if not record.data.size and layer.numel:
        return torch.zeros(layer.shape)
    try:
        if not 4 < record.data.size < 4 * layer.numel:  # larger records are sent raw instead
            raise WireError(f"{record.data.size} bytes, where the raw tensor has {4 * layer.numel}")
        magnitude = np.frombuffer(record.data[:4].tobytes(), "<f4")[0]
        if not (np.isfinite(magnitude) and magnitude >= 0):
            raise WireError(f"invalid magnitude {magnitude}")
        (integers,) = symbols.decode(record.data[4:], [(1, layer.numel)])
        if integers.size and int(np.abs(integers).max()) > 1:
            raise WireError("a symbol is out of its range")
    except WireError as error:
        raise WireError(f"layer {layer.name}: {error}") from None
    return torch.from_numpy(integers.reshape(-1) * magnitude).float().reshape(layer.shape)
