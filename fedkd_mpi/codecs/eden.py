"""Codec `eden`: a random rotation makes the entries nearly normal; they are rounded to the best levels for that."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch

from fedkd_mpi.codecs.per_tensor import PerTensor
from fedkd_mpi.codecs.rice import bits_of, numbers_of
from fedkd_mpi.codecs.rotation import Rotation
from fedkd_mpi.codecs.tags import EDEN
from fedkd_mpi.codecs.wire import WireError
from fedkd_mpi.config.compression import CompressionConfig
from fedkd_mpi.linalg.scaling import exponent_of, times_power_of_two
from fedkd_mpi.models.layer import Layer

SEED = struct.Struct("<H")
LARGEST = float(np.finfo(np.float32).max)


class Eden(PerTensor):
    """Rotated entries have `bits` bits each: DRIVE (1 bit, Vargaftik et al. 2021), EDEN (Vargaftik et al. 2022).

    With a fraction of a bit, that share of the entries has one bit more; with less than one bit, the others are not
    sent. D is the squared error of the levels for a standard normal entry, and of 1 for one that is not sent. With
    error feedback the scale of a block is the best one: |x - C(x)|^2 is about D |x|^2. Without, it is unbiased, and
    |x - C(x)|^2 is about (1 / (1 - D) - 1) |x|^2 on average (less than 1 bit: more by a share of 2 / entries sent).
    The threshold is not used.
    """

    name, encoding = "eden", EDEN

    def __init__(self, compression: CompressionConfig, layers: Sequence[Layer]):
        self.layers, self.unbiased = layers, compression.error_feedback == "none"
        self.bits = float(compression.bits or 1)

    def pack(self, values: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float] | None:
        """Return seed, scales and codes, and the share of the energy that is kept; None if float32 holds no scale."""
        seed = int(rng.integers(2**16))
        rotation = Rotation(values.size, seed)
        layout = _Layout(rotation, self.bits)
        if layout.size >= 4 * values.size:
            return None
        exponent = exponent_of(float(np.abs(values).max()))
        scaled = times_power_of_two(torch.from_numpy(values), -exponent).numpy()
        scales, codes, lost, total = [], [], 0.0, 0.0
        for part in rotation.forward(scaled):
            norms = np.square(part, dtype=np.float64).sum(0)
            # A block may have no energy, or too little for float32 to hold its reciprocal.
            spread = np.minimum(math.sqrt(len(part)) / np.sqrt(np.maximum(norms, 1e-300)), LARGEST).astype(np.float32)
            chosen = [(rows, _nearest(rows * spread, bits)) for rows, bits in layout.split(part)]
            codes += [code for _, code in chosen]
            levels = [_levels(bits)[code] for (_, bits), (_, code) in zip(layout.split(part), chosen, strict=True)]
            sent, approximate = np.concatenate([rows for rows, _ in chosen]), np.concatenate(levels)
            both = (sent * approximate).sum(0, dtype=np.float64)
            square = np.square(approximate, dtype=np.float64).sum(0)
            above, below = (np.square(sent, dtype=np.float64).sum(0), both) if self.unbiased else (both, square)
            scale = np.divide(above, below, out=np.zeros_like(below), where=below > 0)
            scale *= len(part) / len(sent) if self.unbiased else 1.0
            scales.append(scale)
            total += float(norms.sum())
            lost += float((norms - 2 * scale * both + scale**2 * square).sum())
        with np.errstate(over="ignore"):
            sizes = np.ldexp(np.concatenate(scales), exponent).astype("<f4")
        if not np.isfinite(sizes).all():
            return None
        data = b"".join([SEED.pack(seed), sizes.tobytes(), layout.pack(codes)])
        return np.frombuffer(data, np.uint8), 1 - lost / total

    def unpack(self, data: np.ndarray, count: int) -> np.ndarray:
        """Return the entries; raises WireError if the length or a scale is invalid."""
        rotation = Rotation(count, SEED.unpack(data[: SEED.size].tobytes().ljust(SEED.size))[0])
        layout = _Layout(rotation, self.bits)
        if data.size != layout.size:
            raise WireError(f"{data.size} bytes instead of {layout.size}")
        start = SEED.size + 4 * layout.blocks
        sent = np.frombuffer(data[SEED.size : start].tobytes(), "<f4")
        if not (np.isfinite(sent) & (sent >= 0)).all():
            raise WireError("a scale is negative or not finite")
        scales = sent.astype(np.float64)
        flat = rotation.backward(layout.unpack(data[start:])).astype(np.float64)
        end = flat.size - rotation.rest
        flat[:end].reshape(-1, max(rotation.columns, 1))[:] *= scales[: rotation.columns] if end else 1.0
        flat[end:] *= scales[-1]
        return flat.clip(-LARGEST, LARGEST).astype(np.float32)


class _Layout:
    """Which of the rotated entries have how many bits, and the bytes of a record: seed u16, scales f32, codes."""

    def __init__(self, rotation: Rotation, bits: float):
        self.shapes, self.low = rotation.shapes(), math.floor(bits)
        self.share = bits - self.low
        self.blocks = sum(columns for _, columns in self.shapes)
        self.runs = [(rows, columns, width) for shape in self.shapes for rows, columns, width in self._runs(*shape)]
        bits_in_all = sum(rows * columns * width for rows, columns, width in self.runs)
        self.size = SEED.size + 4 * self.blocks + -(-bits_in_all // 8)

    def _runs(self, rows: int, columns: int) -> list[tuple[int, int, int]]:
        more = math.ceil(self.share * rows)
        found = [(more, columns, self.low + 1), (rows - more, columns, self.low)]
        return [run for run in found if run[0] and run[2]]

    def split(self, part: np.ndarray) -> list[tuple[np.ndarray, int]]:
        """Return the rows of a part that are sent, with their bits, the first rows with more of them."""
        found, at = [], 0
        for rows, _, width in self._runs(*part.shape):
            found.append((part[at : at + rows], width))
            at += rows
        return found

    def pack(self, codes: list[np.ndarray]) -> bytes:
        """Return the bytes of the codes of all split() rows."""
        widths = [width for *_, width in self.runs]
        bits = [bits_of(code.reshape(-1), width) for code, width in zip(codes, widths, strict=True)]
        return np.packbits(np.concatenate(bits)).tobytes()

    def unpack(self, data: np.ndarray) -> list[np.ndarray]:
        """Return the levels of the parts, zero for entries that are not sent."""
        bits, at, parts = np.unpackbits(data), 0, []
        for shape in self.shapes:
            part, row = np.zeros(shape, np.float32), 0
            for rows, columns, width in self._runs(*shape):
                count = rows * columns
                codes = numbers_of(bits[at : at + count * width], count, width)
                part[row : row + rows] = _levels(width)[codes].reshape(rows, columns)
                at, row = at + count * width, row + rows
            parts.append(part)
        return parts


@cache
def _levels(bits: int) -> np.ndarray:
    return normal_levels(bits).astype(np.float32)


def _nearest(values: np.ndarray, bits: int) -> np.ndarray:
    levels = _levels(bits)
    return np.searchsorted((levels[1:] + levels[:-1]) / 2, values).astype(np.uint8)


@cache
def normal_levels(bits: int) -> np.ndarray:
    """Return the 2^bits levels (float64, rising) of least squared error for a standard normal number.

    Each is the mean of the numbers nearest to it (Lloyd 1982; Max 1960), found by iteration.
    """
    levels = np.linspace(-2, 2, 2**bits)
    while True:
        edges = [-math.inf, *((levels[1:] + levels[:-1]) / 2).tolist(), math.inf]
        below = [0.5 * math.erfc(-edge / math.sqrt(2)) for edge in edges]
        density = [math.exp(-0.5 * edge * edge) / math.sqrt(2 * math.pi) for edge in edges]
        better = -np.diff(density) / np.diff(below)
        better = (better - better[::-1]) / 2  # symmetric
        if np.abs(better - levels).max() < 1e-12:
            return better
        levels = better
