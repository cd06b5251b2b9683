"""Codec `sz3`: error-bounded compression of the SZ3 library, as FedSZ does (package pysz, extra `codecs`)."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedkd_mpi.codecs import BuiltIn, State, raw, read_raw, require
from fedkd_mpi.codecs.tags import RAW, SZ3
from fedkd_mpi.codecs.wire import Record, WireError, checked_exponent
from fedkd_mpi.config.compression import CompressionConfig
from fedkd_mpi.errors import UserError
from fedkd_mpi.linalg.layout import canonical
from fedkd_mpi.linalg.scaling import exponent_of, times_power_of_two
from fedkd_mpi.models.layer import Layer

HEAD = struct.Struct("<hI")  # exponent, CRC-32 of the stream: the library must not be given a damaged one
LARGEST = float(np.finfo(np.float32).max)
# What Cython makes of the exceptions of C++, all of which the library may raise on data that are no stream of it.
REFUSALS = (ValueError, RuntimeError, MemoryError, TypeError, LookupError, ArithmeticError, OSError)
ROUNDING = 1e-6  # of float32, by which the library's result may exceed a bound


class Sz3(BuiltIn):
    """No entry errs by more than `error_bound` times the range (largest minus smallest entry) of its tensor.

    FedSZ (Wilkins et al. 2023) with SZ3 (Liang et al. 2022): prediction from neighbours, quantisation, entropy coding
    and zstd. The bound is checked on what the receiver will decode; a tensor that is beyond it, or not smaller, is sent
    raw. The threshold is not used. What the library does with a damaged stream is not bounded, so each has a checksum,
    and a sender must be trusted not to forge one. Raises UserError if pysz is not installed.
    """

    def __init__(self, compression: CompressionConfig, layers: Sequence[Layer]):
        self.layers, self.bound = layers, compression.error_bound or 0.01
        try:
            import pysz
        except ImportError as error:
            raise UserError(
                f"compression.codec=sz3 needs the package pysz ({error}): pip install 'fedkd-mpi[codecs]'"
            ) from None
        self._library: Any = pysz

    def encode(
        self, update: Sequence[Tensor], threshold: float, state: State, rng: np.random.Generator
    ) -> list[Record]:
        """Return the records; of a tensor of zeros nothing is sent."""
        return [self._encode(tensor) for tensor in update]

    def decode(self, records: Sequence[Record], device: str) -> list[Tensor]:
        """Return the tensors; raises WireError if the library refuses the data of a record."""
        return [self._decode(record, layer).to(device) for record, layer in zip(records, self.layers, strict=True)]

    def _encode(self, tensor: Tensor) -> Record:
        largest = float(tensor.abs().max()) if tensor.numel() else 0.0
        if tensor.numel() and not largest:
            return Record(SZ3, -1, np.empty(0, np.uint8), 1.0)
        if not tensor.numel():
            return raw(tensor)
        exponent = exponent_of(largest)
        scaled = times_power_of_two(canonical(tensor), -exponent).cpu().numpy().reshape(-1)
        settings = self._library.szConfig()
        settings.errorBoundMode = self._library.szErrorBoundMode.REL
        settings.relErrorBound = self.bound
        coded, _ = self._library.sz.compress(scaled, settings)
        if HEAD.size + coded.size >= 4 * scaled.size:
            return raw(tensor)
        decoded, _ = self._library.sz.decompress(coded, np.float32, scaled.shape)
        lost = decoded.astype(np.float64) - scaled
        if not np.abs(lost).max() <= self.bound * (float(scaled.max()) - float(scaled.min())) + ROUNDING:
            return raw(tensor)
        head = HEAD.pack(exponent, zlib.crc32(coded.data))
        data = np.concatenate([np.frombuffer(head, np.uint8), coded])
        return Record(SZ3, -1, data, float(1 - np.square(lost).sum() / np.square(scaled, dtype=np.float64).sum()))

    def _decode(self, record: Record, layer: Layer) -> Tensor:
        if record.encoding == RAW:
            return read_raw(record, layer)
        require(record, layer, "sz3", SZ3)
        if not record.data.size and layer.numel:
            return torch.zeros(layer.shape)
        try:
            if not HEAD.size < record.data.size < 4 * layer.numel:  # larger records are sent raw instead
                raise WireError(f"{record.data.size} bytes, where the raw tensor has {4 * layer.numel}")
            exponent, checksum = HEAD.unpack(record.data[: HEAD.size].tobytes())
            exponent, coded = checked_exponent(exponent), record.data[HEAD.size :].copy()
            if zlib.crc32(coded.data) != checksum:
                raise WireError("checksum of the stream does not match")
            flat, _ = self._library.sz.decompress(coded, np.float32, (layer.numel,))
        except REFUSALS as error:
            raise WireError(f"layer {layer.name}: {error}") from None
        if not np.isfinite(flat).all():
            raise WireError(f"layer {layer.name}: an entry is not finite")
        # An entry at the end of float32's range may err beyond it.
        tensor = times_power_of_two(torch.from_numpy(flat), exponent).clamp(-LARGEST, LARGEST)
        return tensor.reshape(layer.shape)
