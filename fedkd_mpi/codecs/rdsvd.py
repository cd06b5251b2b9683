"""Codec `rdsvd`: singular directions on one quantisation step, entropy-coded; the energy is checked before anything is sent.

Each tensor goes by the smallest of several encodings that keeps more than the threshold's share of its energy:
raw, dense but quantised, or quantised factors of the matrix or of another unfolding of a convolution. Tensors with one
dimension go in 16 bits. After rate-distortion theory for a Gaussian source (Cover and Thomas, Elements of Information
Theory, 10.3.3), applied to the paper's factors (Wu et al. 2022).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedkd_mpi.codecs import RAW, raw, read_floats, symbols
from fedkd_mpi.codecs.rate_distortion import Plan, dequantize, plan, quantize
from fedkd_mpi.config import Compression
from fedkd_mpi.errors import RunFault
from fedkd_mpi.factorization import directions, exponent_of, times_power_of_two
from fedkd_mpi.wire import Layer, Record, WireError

HALF, FACTORS = 2, 4
HEAD = struct.Struct("<Bhf")  # unfolding and whether rows are left out, exponent of the scale, step
MASKED = 128
SMALL = struct.Struct("<h")


class Candidate(NamedTuple):
    """One unfolding of a tensor: scaled, without zero rows, wide; with its spectrum and plan."""

    unfolding: int
    matrix: Tensor
    rows: Tensor | None  # mask of the rows that are not zero
    basis: Tensor
    energies: Tensor
    planned: Plan


class RateDistortionSvd:
    """The smallest checked encoding of each tensor; at worst raw."""

    def __init__(self, compression: Compression, layers: Sequence[Layer]):
        self.layers = layers

    def encode(self, update: Sequence[Tensor], threshold: float, state: dict[str, Tensor]) -> list[Record]:
        """Return the records at energy threshold T; `state` remembers which unfolding suits each layer.

        Raises RunFault naming the layer if it is not finite.
        """
        unfoldings = state.setdefault("unfolding", torch.full((len(self.layers),), -1, dtype=torch.int8))
        records = []
        for index, (tensor, layer) in enumerate(zip(update, self.layers, strict=True)):
            largest = float(tensor.abs().max()) if tensor.numel() else 0.0
            if not math.isfinite(largest):
                raise RunFault("the matrix is not finite", layer=layer.name)
            if largest == 0:
                records.append(Record(FACTORS, 0, np.empty(0, np.uint8), 1.0))
                continue
            exponent = exponent_of(largest)
            scaled = times_power_of_two(tensor.detach(), -exponent)
            if threshold >= 1:
                record = raw(tensor)
            elif not layer.compressible:
                record = _half(scaled, exponent)
            else:
                record, unfoldings[index] = _factors(scaled, layer, exponent, threshold, int(unfoldings[index]))
            fits = record is not None and record.data.size < 4 * layer.numel and record.energy > threshold
            records.append(record if fits else raw(tensor))
        return records

    def decode(self, records: Sequence[Record], device: str) -> list[Tensor]:
        """Return the tensors; raises WireError, naming the layer, on anything that does not fit it."""
        return [self._decode(record, layer, device) for record, layer in zip(records, self.layers, strict=True)]

    def _decode(self, record: Record, layer: Layer, device: str) -> Tensor:
        if record.encoding == RAW:
            return read_floats(record, layer, layer.numel).reshape(layer.shape).to(device)
        try:
            if record.encoding == HALF:
                return _read_half(record, layer).to(device)
            if record.encoding == FACTORS:
                return _read_factors(record, layer, device)
            raise WireError(f"encoding {record.encoding} is unknown to codec rdsvd")
        except WireError as error:
            raise WireError(f"layer {layer.name}: {error}") from None


def unfoldings(shape: Sequence[int]) -> list[int]:
    """Return the unfoldings of a tensor: 0 = P x rest, and for convolutions 1 = (P kh) x (I kw), 2 = (P kh kw) x I."""
    return [0, 1, 2] if len(shape) == 4 and shape[2] * shape[3] > 1 else [0]


def unfold(tensor: Tensor, unfolding: int) -> Tensor:
    """Return the matrix of an unfolding."""
    if unfolding == 0:
        return tensor.reshape(tensor.shape[0], -1)
    out, into, height, width = tensor.shape
    if unfolding == 1:
        return tensor.permute(0, 2, 1, 3).reshape(out * height, into * width)
    return tensor.permute(0, 2, 3, 1).reshape(out * height * width, into)


def fold(matrix: Tensor, unfolding: int, shape: Sequence[int]) -> Tensor:
    """Return the tensor of this shape whose unfolding the matrix is."""
    if unfolding == 0:
        return matrix.reshape(shape)
    out, into, height, width = shape
    if unfolding == 1:
        return matrix.reshape(out, height, into, width).permute(0, 2, 1, 3).contiguous()
    return matrix.reshape(out, height, width, into).permute(0, 3, 1, 2).contiguous()


def _half(scaled: Tensor, exponent: int) -> Record:
    half = scaled.half()
    lost = float((scaled.double() - half.double()).square().sum() / scaled.double().square().sum())
    data = SMALL.pack(exponent) + half.cpu().numpy().astype("<f2").tobytes()
    return Record(HALF, -1, np.frombuffer(data, np.uint8), 1 - lost)


def _read_half(record: Record, layer: Layer) -> Tensor:
    if record.data.size != SMALL.size + 2 * layer.numel:
        raise WireError(f"{record.data.size} bytes where {SMALL.size + 2 * layer.numel} belong")
    (exponent,) = SMALL.unpack(record.data[: SMALL.size].tobytes())
    values = np.frombuffer(record.data[SMALL.size :].tobytes(), "<f2").astype(np.float32)
    return times_power_of_two(torch.from_numpy(values), _checked(exponent)).reshape(layer.shape)


def _factors(scaled: Tensor, layer: Layer, exponent: int, threshold: float, known: int) -> tuple[Record | None, int]:
    choices = [known] if known >= 0 else unfoldings(layer.shape)
    candidates = [_candidate(unfold(scaled, choice), choice, threshold) for choice in choices]
    best = min(candidates, key=lambda candidate: candidate.planned.bits)
    found = quantize(best.matrix, best.basis, best.energies, best.planned, threshold)
    if found is None:
        return None, best.unfolding
    left, right = (factor.to(torch.int16).cpu().numpy() for factor in (found.left, found.right))
    head = HEAD.pack(best.unfolding | (MASKED if best.rows is not None else 0), exponent, found.step)
    mask = b"" if best.rows is None else np.packbits(best.rows.cpu().numpy()).tobytes()
    data = np.concatenate([np.frombuffer(head + mask, np.uint8), symbols.encode([left, right])])
    return Record(FACTORS, left.shape[0], data, found.energy), best.unfolding


def _candidate(matrix: Tensor, unfolding: int, threshold: float) -> Candidate:
    rows = matrix.any(1)
    masked = not bool(rows.all())
    if masked:
        matrix = matrix[rows]
    wide = (matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T).contiguous()
    basis, energies = directions(wide)
    return Candidate(unfolding, wide, rows if masked else None, basis, energies, plan(energies, *wide.shape, threshold))


def _read_factors(record: Record, layer: Layer, device: str) -> Tensor:
    if record.data.size == 0 and record.rank == 0:
        return torch.zeros(layer.shape, device=device)
    if not layer.compressible:
        raise WireError("factors of a tensor that is no matrix")
    if record.data.size < HEAD.size:
        raise WireError("the record ends inside its head")
    flags, exponent, step = HEAD.unpack(record.data[: HEAD.size].tobytes())
    unfolding, body = flags & ~MASKED, record.data[HEAD.size :]
    if unfolding not in unfoldings(layer.shape):
        raise WireError(f"unknown unfolding {unfolding}")
    if not (math.isfinite(step) and step > 0):
        raise WireError(f"impossible step {step}")
    full_rows, columns = unfold(torch.empty(layer.shape, device="meta"), unfolding).shape
    rows, mask = full_rows, None
    if flags & MASKED:
        size = -(-full_rows // 8)
        mask = np.unpackbits(body[:size], count=full_rows).astype(bool) if body.size >= size else None
        if mask is None:
            raise WireError("the record ends inside its mask of rows")
        rows, body = int(mask.sum()), body[size:]
    short, long = sorted((rows, columns))
    if not 0 <= record.rank <= short:
        raise WireError(f"rank {record.rank} of a {rows} x {columns} matrix")
    left, right = symbols.decode(body, [(record.rank, short), (record.rank, long)])
    product = dequantize(torch.from_numpy(left).to(device), torch.from_numpy(right).to(device), step)
    product = times_power_of_two(product if rows <= columns else product.T, _checked(exponent))
    if mask is not None:
        kept, product = product, product.new_zeros(full_rows, columns)
        product[torch.from_numpy(mask).to(device)] = kept
    return fold(product, unfolding, layer.shape)


def _checked(exponent: int) -> int:
    if abs(exponent) > 200:
        raise WireError(f"impossible exponent {exponent}")
    return exponent
