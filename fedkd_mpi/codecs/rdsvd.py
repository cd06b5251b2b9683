"""Codec `rdsvd`: singular directions quantised with one step and entropy-coded; the sender checks the kept energy.

Each tensor is sent in the smallest of these encodings that keeps more than the threshold's share of its energy: raw;
16 bits per number (the only alternative for tensors of one dimension); quantised factors of the matrix or of another
unfolding of a convolution; the quantised matrix itself; and for small tensors the paper's factors in 16 or 8 bits. With
error feedback, all tensors of one dimension may be sent together as integers with one step. The record contains the
encoding.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedkd_mpi.codecs import BuiltIn, State, raw, read_raw, require, symbols
from fedkd_mpi.codecs.narrow import NARROW, narrow, read_narrow
from fedkd_mpi.codecs.rate_distortion import Integers, Plan, checked, dense, factors, plan, rebuilt, share_out
from fedkd_mpi.codecs.staging import to_device, to_host
from fedkd_mpi.codecs.tags import BYTE_FACTORS, DENSE, FACTORS, HALF, HALF_FACTORS, POOLED, RAW
from fedkd_mpi.codecs.unfolding import fold, unfold, unfolded_shape, unfoldings
from fedkd_mpi.codecs.vectors import pool, unpool
from fedkd_mpi.codecs.wire import Record, WireError, checked_exponent
from fedkd_mpi.common.remembered import Kind, Memory
from fedkd_mpi.config.compression import CompressionConfig
from fedkd_mpi.errors import RunFault
from fedkd_mpi.linalg.layout import canonical
from fedkd_mpi.linalg.low_rank import directions, zero_rows
from fedkd_mpi.linalg.scaling import exponent_of, ordinary_exponent, times_power_of_two
from fedkd_mpi.models.layer import Layer

HEAD = struct.Struct("<Bhf")  # unfolding (and whether zero rows are left out), exponent of the scale, step
MASKED = 128
TINY = 4096  # entries; above, factors with 16 or 8 bits per number are never the smallest encoding


class Candidate(NamedTuple):
    """One unfolding of a tensor, without zero rows and transposed to be wide, with its spectrum and plan."""

    unfolding: int
    wide: Tensor
    rows: Tensor | None  # mask of the non-zero rows, None if all rows are kept
    basis: Tensor
    energies: Tensor
    planned: Plan


class Prepared(NamedTuple):
    """One tensor to encode: its largest magnitude, the exponent removed before factorising, and its best unfolding.

    `best` is None for a tensor that is not factorised.
    """

    layer: Layer
    tensor: Tensor
    largest: float
    exponent: int
    best: Candidate | None


class RateDistortionSvd(BuiltIn):
    """The smallest checked encoding of each tensor; raw if no other is smaller.

    compression.energy_scope determines the scope of the threshold: each tensor, or the whole update with one step for
    all matrices. The latter takes fewer bytes for the same total energy but may send nothing of layers with a small
    norm. Error feedback must then send them in later rounds.
    """

    def __init__(self, compression: CompressionConfig, layers: Sequence[Layer]):
        self.layers, self.scope = layers, compression.energy_scope
        vectors = [index for index, layer in enumerate(layers) if not layer.compressible]
        self.vectors = vectors if compression.error_feedback != "none" else []  # layers that may be pooled

    def encode(
        self, update: Sequence[Tensor], threshold: float, state: State, rng: np.random.Generator
    ) -> list[Record]:
        """Return the records at energy threshold T; state["unfolding"] keeps the best unfolding of each layer.

        Raises RunFault naming the layer if it is not finite.
        """
        known = state.setdefault("unfolding", torch.full((len(self.layers),), -1, dtype=torch.int8))
        prepared = [
            _prepare(tensor, layer, threshold, int(choice))
            for tensor, layer, choice in zip(update, self.layers, known, strict=True)
        ]
        choices = [part.best.unfolding if part.best else int(old) for part, old in zip(prepared, known, strict=True)]
        state["unfolding"] = torch.tensor(choices, dtype=torch.int8)
        if self.scope == "tensor" or threshold >= 1:
            records = [_encode(part, threshold) for part in prepared]
        else:
            own = _common(prepared, threshold)
            records = [
                _encode(_replanned(part, part.best, own[i]), own[i]) if part.best else _encode(part, threshold)
                for i, part in enumerate(prepared)
            ]
        pooled = pool([update[i] for i in self.vectors], threshold) if self.vectors and 0 < threshold < 1 else None
        if pooled and pooled[0].data.size < sum(records[i].data.size for i in self.vectors):
            for index, record in zip(self.vectors, pooled, strict=True):
                records[index] = record
        return records

    def decode(self, records: Sequence[Record], device: str) -> list[Tensor]:
        """Return the tensors; raises WireError naming the layer if a record is invalid for it."""
        pairs = list(zip(records, self.layers, strict=True))
        if self.vectors and records[self.vectors[0]].encoding == POOLED:
            pooled = unpool([records[i] for i in self.vectors], [self.layers[i] for i in self.vectors])
            vectors = dict(zip(self.vectors, (tensor.to(device) for tensor in pooled), strict=True))
            return [vectors[i] if i in vectors else self._decode(*pair, device) for i, pair in enumerate(pairs)]
        return [self._decode(*pair, device) for pair in pairs]

    def sender_memory(self) -> Memory:
        """Return what a sender remembers: the unfolding of each layer."""
        return Memory({"unfolding": Kind((len(self.layers),), "int8")})

    def _decode(self, record: Record, layer: Layer, device: str) -> Tensor:
        if record.encoding == RAW:
            return read_raw(record, layer, device)
        if record.encoding in NARROW:
            return read_narrow(record, layer).to(device)
        if record.encoding != FACTORS:
            require(record, layer, "rdsvd", DENSE)
        try:
            return _read_quantized(record, layer, device)
        except WireError as error:
            raise WireError(f"layer {layer.name}: {error}") from None


def _prepare(tensor: Tensor, layer: Layer, threshold: float, known: int) -> Prepared:
    tensor = canonical(tensor)
    largest = float(tensor.abs().max()) if tensor.numel() else 0.0
    if not math.isfinite(largest):
        raise RunFault("the update is not finite", layer=layer.name)
    exponent = ordinary_exponent(largest)
    if largest == 0 or threshold >= 1 or not layer.compressible:
        return Prepared(layer, tensor, largest, exponent, None)
    scaled = times_power_of_two(tensor, -exponent) if exponent else tensor
    choices = [known] if known >= 0 else unfoldings(layer.shape)
    candidates = [_candidate(unfold(scaled, choice), choice, threshold) for choice in choices]
    return Prepared(layer, tensor, largest, exponent, min(candidates, key=lambda candidate: candidate.planned.bits))


def _common(prepared: Sequence[Prepared], threshold: float) -> dict[int, float]:
    """Return the threshold of each matrix, by its index, for one common step."""
    top = exponent_of(max(part.largest for part in prepared))
    norms = [float(times_power_of_two(part.tensor, -top).double().square().sum()) for part in prepared]
    matrices: list[int] = []  # vectors keep the threshold individually
    spectra = []
    for index, part in enumerate(prepared):
        if part.best:
            scale = 4.0 ** max(part.exponent - top, -500)
            matrices.append(index)
            spectra.append((part.best.energies * scale, sum(part.best.wide.shape)))
    total = sum(norms[index] for index in matrices)
    return dict(zip(matrices, share_out(spectra, total, threshold), strict=True))


def _replanned(part: Prepared, best: Candidate, threshold: float) -> Prepared:
    short, long = best.wide.shape
    return part._replace(best=best._replace(planned=plan(best.energies, short, long, threshold)))


def _encode(part: Prepared, threshold: float) -> Record:
    if part.largest == 0 or threshold <= 0:
        return Record(FACTORS, 0, np.empty(0, np.uint8), float(threshold > 0))
    records = _quantized(part.best, part.exponent, threshold) if part.best else []
    if threshold < 1 and (part.layer.numel <= TINY or not records):
        exponent = exponent_of(part.largest)
        scaled = times_power_of_two(part.tensor, -exponent)
        records.append(narrow(HALF, scaled, exponent))
        if part.best and part.layer.numel <= TINY:
            matrix = unfold(scaled, 0)
            records += [narrow(kind, matrix, exponent, threshold) for kind in (HALF_FACTORS, BYTE_FACTORS)]
    valid = (record for record in records if record.energy > threshold)
    best = min(valid, key=lambda record: record.data.size, default=None)
    return best if best and best.data.size < 4 * part.layer.numel else raw(part.tensor)


def _candidate(matrix: Tensor, unfolding: int, threshold: float) -> Candidate:
    rows = zero_rows(matrix)
    matrix = matrix if rows is None else matrix[rows]
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    basis, energies = directions(wide, threshold)
    short, long = wide.shape
    return Candidate(unfolding, wide, rows, basis, energies, plan(energies, short, long, threshold))


def _quantized(best: Candidate, exponent: int, threshold: float) -> list[Record]:
    """Return the records of the factors and, if a flat spectrum makes it competitive, of the matrix itself."""
    records, wide = [], best.wide
    found = checked(wide, lambda aim: factors(wide, best.basis, best.energies, best.planned, aim), exponent, threshold)
    if found:
        records.append(_record(FACTORS, found, best, exponent))
    if not found or best.planned.bits > best.wide.numel() * 0.25 * math.log2(1 / (1 - threshold)):
        found = checked(wide, lambda aim: dense(wide, aim), exponent, threshold)
        records += [_record(DENSE, found, best, exponent)] if found else []
    return records


def _record(encoding: int, found: Integers, source: Candidate, exponent: int) -> Record:
    head = HEAD.pack(source.unfolding | (MASKED if source.rows is not None else 0), exponent, found.step)
    mask = b"" if source.rows is None else np.packbits(source.rows.cpu().numpy()).tobytes()
    body = symbols.encode([to_host(matrix.to(torch.int16)).numpy() for matrix in found.matrices])
    rank = found.matrices[0].shape[0] if encoding == FACTORS else -1
    return Record(encoding, rank, np.concatenate([np.frombuffer(head + mask, np.uint8), body]), found.energy)


def _read_quantized(record: Record, layer: Layer, device: str) -> Tensor:
    if record.encoding == FACTORS and record.data.size == 0 and record.rank == 0:
        return torch.zeros(layer.shape, device=device)
    if not layer.compressible:
        raise WireError("the encoding is for matrices, and the layer is not a matrix")
    if not HEAD.size <= record.data.size < 4 * layer.numel:  # a larger record is sent raw instead
        raise WireError(f"{record.data.size} bytes; there must be at least {HEAD.size} and less than {4 * layer.numel}")
    flags, exponent, step = HEAD.unpack(record.data[: HEAD.size].tobytes())
    unfolding, body = flags & ~MASKED, record.data[HEAD.size :]
    if unfolding not in unfoldings(layer.shape):
        raise WireError(f"unknown unfolding {unfolding}")
    if not (math.isfinite(step) and step > 0):
        raise WireError(f"invalid step {step}")
    all_rows, columns = unfolded_shape(layer.shape, unfolding)
    mask = np.ones(all_rows, bool)
    if flags & MASKED:
        size = -(-all_rows // 8)
        if body.size < size:
            raise WireError("the record ends inside its mask of rows")
        mask, body = np.unpackbits(body[:size], count=all_rows).astype(bool), body[size:]
    rows = int(mask.sum())
    short, long = sorted((rows, columns))
    if record.encoding == DENSE:
        shapes = [(short, long)]
    else:
        if not 0 <= record.rank <= short:
            raise WireError(f"rank {record.rank} of a {rows} x {columns} matrix")
        shapes = [(record.rank, short), (record.rank, long)]
    wide = rebuilt([to_device(torch.from_numpy(m), device) for m in symbols.decode(body, shapes)], step)
    matrix = times_power_of_two(wide if rows <= columns else wide.T, checked_exponent(exponent))
    if flags & MASKED:
        kept, matrix = matrix, matrix.new_zeros(all_rows, columns)
        matrix[torch.from_numpy(mask).to(device)] = kept
    return fold(matrix, unfolding, layer.shape)
