"""Codecs `quantize` (4, 8 or 16 bits with unbiased random rounding) and `float16`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedkd_mpi.codecs import BuiltIn, State, raw, read_raw, require
from fedkd_mpi.codecs.narrow import narrow, read_narrow
from fedkd_mpi.codecs.tags import HALF, QUANTIZED, RAW
from fedkd_mpi.codecs.wire import Record, WireError
from fedkd_mpi.config.compression import CompressionConfig
from fedkd_mpi.linalg.layout import canonical
from fedkd_mpi.linalg.scaling import exponent_of, times_power_of_two
from fedkd_mpi.models.layer import Layer


class Quantize(BuiltIn):
    """Each tensor is divided by its largest magnitude and rounded at random to one of 2^bits - 1 levels.

    A value is rounded up with a probability equal to its remainder, which is unbiased: QSGD (Alistarh et al. 2017), in
    federated learning FedPAQ (Reisizadeh et al. 2020). The threshold is not used.
    """

    def __init__(self, compression: CompressionConfig, layers: Sequence[Layer]):
        self.layers, self.bits = layers, int(compression.bits or 8)
        self.top = 2 ** (self.bits - 1) - 1

    def encode(
        self, update: Sequence[Tensor], threshold: float, state: State, rng: np.random.Generator
    ) -> list[Record]:
        """Return the records; a tensor that is not larger raw is sent raw."""
        return [self._encode(tensor, rng) for tensor in update]

    def decode(self, records: Sequence[Record], device: str) -> list[Tensor]:
        """Return the tensors; raises WireError if an encoding or length is invalid."""
        return [self._decode(record, layer).to(device) for record, layer in zip(records, self.layers, strict=True)]

    def _encode(self, tensor: Tensor, rng: np.random.Generator) -> Record:
        values = canonical(tensor).cpu().numpy().reshape(-1)
        scale = np.abs(values).max(initial=0.0)
        if 4 + self._size(values.size) >= 4 * values.size:
            return raw(tensor)
        # Divide by the scale first: its reciprocal may exceed float32's range.
        levels = values / scale * np.float32(self.top) if scale else np.zeros_like(values)
        # float64: in float32 a sum just below an integer rounds to it, for one in a thousand values at 16 bits.
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
            raise WireError(f"layer {layer.name}: {record.data.size} bytes instead of {4 + self._size(layer.numel)}")
        scale, body = record.data[:4].copy().view("<f4")[0], record.data[4:].copy()
        if not (np.isfinite(scale) and scale >= 0):
            raise WireError(f"layer {layer.name}: invalid scale {scale}")
        if self.bits == 16:
            integers = body.view("<i2")
        elif self.bits == 8:
            integers = body.view(np.int8)
        else:
            integers = (np.stack([body >> 4, body & 15], 1).reshape(-1)[: layer.numel]).astype(np.int8) - 8
        if integers.size and int(integers.min()) < -self.top:
            raise WireError(f"layer {layer.name}: an integer is out of the range of {self.bits} bits")
        return torch.from_numpy(integers / np.float32(self.top) * scale).float().reshape(layer.shape)

    def _size(self, count: int) -> int:
        return -(-count * self.bits // 8)


class Float16(BuiltIn):
    """Every number in half precision, scaled by a power of two per tensor: half the bytes, relative errors to 2^-11."""

    def __init__(self, compression: CompressionConfig, layers: Sequence[Layer]):
        self.layers = layers

    def encode(
        self, update: Sequence[Tensor], threshold: float, state: State, rng: np.random.Generator
    ) -> list[Record]:
        """Return the records; the threshold is not used."""
        records = []
        for tensor in update:
            exponent = exponent_of(float(tensor.abs().max()) if tensor.numel() else 0.0)
            half = narrow(HALF, times_power_of_two(canonical(tensor), -exponent), exponent)
            # Entries that round up to 2^128 exceed float32's range.
            records.append(half if half.data.size < 4 * tensor.numel() and np.isfinite(half.energy) else raw(tensor))
        return records

    def decode(self, records: Sequence[Record], device: str) -> list[Tensor]:
        """Return the tensors; raises WireError if an encoding or length is invalid."""
        tensors = []
        for record, layer in zip(records, self.layers, strict=True):
            if record.encoding == RAW:
                tensor = read_raw(record, layer)
            else:
                require(record, layer, "float16", HALF)
                tensor = read_narrow(record, layer)
            tensors.append(tensor.to(device))
        return tensors
