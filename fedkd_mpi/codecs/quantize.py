"""Codecs `quantize` (4, 8 or 16 bits, rounded at random so that the mean is right) and `float16`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedkd_mpi.codecs import Codec, State, raw, read_raw, require
from fedkd_mpi.codecs.narrow import narrow, read_narrow
from fedkd_mpi.codecs.tags import HALF, QUANTIZED, RAW
from fedkd_mpi.codecs.wire import Record, WireError
from fedkd_mpi.config.sections import CompressionConfig
from fedkd_mpi.linalg.layout import canonical
from fedkd_mpi.linalg.scaling import exponent_of, times_power_of_two
from fedkd_mpi.models.layer import Layer


class Quantize(Codec):
    """Each tensor over its largest magnitude, on 2^bits - 1 levels, rounded up with the probability of the remainder.

    Unbiased: QSGD (Alistarh et al. 2017), in federated learning FedPAQ (Reisizadeh et al. 2020). The threshold plays
    no part.
    """

    def __init__(self, compression: CompressionConfig, layers: Sequence[Layer]):
        self.layers, self.bits = layers, compression.bits or 8
        self.top = 2 ** (self.bits - 1) - 1

    def encode(
        self, update: Sequence[Tensor], threshold: float, state: State, rng: np.random.Generator
    ) -> list[Record]:
        """Return the records; a tensor that raw is not larger goes raw."""
        return [self._encode(tensor, rng) for tensor in update]

    def decode(self, records: Sequence[Record], device: str) -> list[Tensor]:
        """Return the tensors; raises WireError on another encoding or length."""
        return [self._decode(record, layer).to(device) for record, layer in zip(records, self.layers, strict=True)]

    def _encode(self, tensor: Tensor, rng: np.random.Generator) -> Record:
        values = canonical(tensor).cpu().numpy().reshape(-1)
        scale = np.abs(values).max(initial=0.0)
        if 4 + self._size(values.size) >= 4 * values.size:
            return raw(tensor)
        # Divided by the scale first: its reciprocal may be no float32.
        levels = values / scale * np.float32(self.top) if scale else np.zeros_like(values)
        # In float64: in float32 a sum just below a whole number is that number, a thousandth of all at 16 bits.
        integers = np.floor(levels + rng.random(values.size, np.float32).astype(np.float64)).clip(-self.top, self.top)
        lost = np.square(levels - integers, dtype=np.float64).sum()
        energy = 1 - lost / np.square(levels, dtype=np.float64).sum() if scale else 1.0
        if self.bits == 16:
            body = integers.astype("<i2").view(np.uint8)
        else:
            body = integers.astype(np.int8).view(np.uint8)
            if self.bits == 4:
                body = np.append(body + np.uint8(8), np.zeros(body.size % 2, np.uint8))
                body = body[::2] << 4 | body[1::2]
        return Record(QUANTIZED, -1, np.concatenate([np.array([scale], "<f4").view(np.uint8), body]), energy)

    def _decode(self, record: Record, layer: Layer) -> Tensor:
        if record.encoding == RAW:
            return read_raw(record, layer)
        require(record, layer, "quantize", QUANTIZED)
        if record.data.size != 4 + self._size(layer.numel):
            raise WireError(f"layer {layer.name}: {record.data.size} bytes where {4 + self._size(layer.numel)} belong")
        scale, body = record.data[:4].copy().view("<f4")[0], record.data[4:].copy()
        if not (np.isfinite(scale) and scale >= 0):
            raise WireError(f"layer {layer.name}: impossible scale {scale}")
        if self.bits == 16:
            integers = body.view("<i2")
        elif self.bits == 8:
            integers = body.view(np.int8)
        else:
            integers = (np.stack([body >> 4, body & 15], 1).reshape(-1)[: layer.numel]).astype(np.int8) - 8
        if integers.size and int(integers.min()) < -self.top:
            raise WireError(f"layer {layer.name}: an integer is out of its {self.bits} bits' range")
        return torch.from_numpy(integers / np.float32(self.top) * scale).float().reshape(layer.shape)

    def _size(self, count: int) -> int:
        return -(-count * self.bits // 8)


class Float16(Codec):
    """Every number in half precision, scaled by a power of two per tensor: half the bytes, errors up to 2^-11."""

    def __init__(self, compression: CompressionConfig, layers: Sequence[Layer]):
        self.layers = layers

    def encode(
        self, update: Sequence[Tensor], threshold: float, state: State, rng: np.random.Generator
    ) -> list[Record]:
        """Return the records; the threshold plays no part."""
        records = []
        for tensor in update:
            exponent = exponent_of(float(tensor.abs().max()) if tensor.numel() else 0.0)
            half = narrow(HALF, times_power_of_two(canonical(tensor), -exponent), exponent)
            # What rounds up to 2^128 is no float32.
            records.append(half if half.data.size < 4 * tensor.numel() and np.isfinite(half.energy) else raw(tensor))
        return records

    def decode(self, records: Sequence[Record], device: str) -> list[Tensor]:
        """Return the tensors; raises WireError on another encoding or length."""
        tensors = []
        for record, layer in zip(records, self.layers, strict=True):
            if record.encoding == RAW:
                tensor = read_raw(record, layer)
            else:
                require(record, layer, "float16", HALF)
                tensor = read_narrow(record, layer)
            tensors.append(tensor.to(device))
        return tensors
