"""Codec `sz3`: error-bounded compression of the SZ3 library, as FedSZ does (package pysz, extra `codecs`)."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from fedkd_mpi.codecs.per_tensor import PerTensor
from fedkd_mpi.codecs.tags import SZ3
from fedkd_mpi.codecs.wire import WireError, checked_exponent
from fedkd_mpi.config.compression import CompressionConfig
from fedkd_mpi.errors import UserError
from fedkd_mpi.linalg.scaling import exponent_of, times_power_of_two
from fedkd_mpi.models.layer import Layer

HEAD = struct.Struct("<hI")  # exponent, CRC-32 of the stream: the library must not be given a damaged one
LARGEST = float(np.finfo(np.float32).max)
# What Cython makes of the exceptions of C++, all of which the library may raise on data that are no stream of it.
REFUSALS = (ValueError, RuntimeError, MemoryError, TypeError, LookupError, ArithmeticError, OSError)
ROUNDING = 1e-6  # of float32, by which the library's result may exceed a bound


class Sz3(PerTensor):
    """No entry errs by more than `error_bound` times the range (largest minus smallest entry) of its tensor.

    FedSZ (Wilkins et al. 2023) with SZ3 (Liang et al. 2022): prediction from neighbours, quantisation, entropy coding
    and zstd. The bound is checked on what the receiver will decode; a tensor that is beyond it, or not smaller, is sent
    raw. The threshold is not used. What the library does with a damaged stream is not bounded, so each has a checksum,
    and a sender must be trusted not to forge one. Raises UserError if pysz is not installed.
    """

    name, encoding = "sz3", SZ3

    def __init__(self, compression: CompressionConfig, layers: Sequence[Layer]):
        self.layers, self.bound = layers, compression.error_bound or 0.01
        try:
            import pysz
        except ImportError as error:
            raise UserError(
                f"compression.codec=sz3 needs the package pysz ({error}): pip install 'fedkd-mpi[codecs]'"
            ) from None
        self._library: Any = pysz

    def pack(self, values: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float] | None:
        """Return exponent, checksum and stream, and the share of the energy that is kept; None beyond the bound."""
        exponent = exponent_of(float(np.abs(values).max()))
        scaled = times_power_of_two(torch.from_numpy(values), -exponent).numpy()
        settings = self._library.szConfig()
        settings.errorBoundMode = self._library.szErrorBoundMode.REL
        settings.relErrorBound = self.bound
        coded, _ = self._library.sz.compress(scaled, settings)
        decoded, _ = self._library.sz.decompress(coded, np.float32, scaled.shape)
        lost = decoded.astype(np.float64) - scaled
        if not np.abs(lost).max() <= self.bound * (float(scaled.max()) - float(scaled.min())) + ROUNDING:
            return None
        head = np.frombuffer(HEAD.pack(exponent, zlib.crc32(coded.data)), np.uint8)
        energy = 1 - np.square(lost).sum() / np.square(scaled, dtype=np.float64).sum()
        return np.concatenate([head, coded]), float(energy)

    def unpack(self, data: np.ndarray, count: int) -> np.ndarray:
        """Return the entries; raises WireError if the stream is damaged, or the library refuses it."""
        if data.size <= HEAD.size:
            raise WireError(f"{data.size} bytes, which hold no stream")
        exponent, checksum = HEAD.unpack(data[: HEAD.size].tobytes())
        exponent, coded = checked_exponent(exponent), data[HEAD.size :].copy()
        if zlib.crc32(coded.data) != checksum:
            raise WireError("checksum of the stream does not match")
        try:
            flat, _ = self._library.sz.decompress(coded, np.float32, (count,))
        except REFUSALS as error:
            raise WireError(str(error)) from None
        if not np.isfinite(flat).all():
            raise WireError("an entry is not finite")
        # An entry at the end of float32's range may err beyond it.
        return times_power_of_two(torch.from_numpy(flat), exponent).clamp(-LARGEST, LARGEST).numpy()
