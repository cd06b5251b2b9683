"""Encodings with 16 or 8 bits per number, scaled by a power of two: whole tensors, or the paper's factors of a matrix.

HALF            exponent i16, float16 of every entry
HALF_FACTORS    exponent i16, float16 of U diag(s) [P, K] and V [K, Q]
BYTE_FACTORS    exponent i16, per direction a float32 scale, then int8 of U s / max and of V / max
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fedkd_mpi.codecs import require
from fedkd_mpi.codecs.rate_distortion import kept
from fedkd_mpi.codecs.tags import BYTE_FACTORS, HALF, HALF_FACTORS
from fedkd_mpi.codecs.wire import Record, WireError, checked_exponent
from fedkd_mpi.linalg.layout import canonical
from fedkd_mpi.linalg.low_rank import exact
from fedkd_mpi.linalg.scaling import there_and_back, times_power_of_two
from fedkd_mpi.models.layer import Layer

NARROW = (HALF, HALF_FACTORS, BYTE_FACTORS)
EXPONENT = np.dtype("<i2")
TINY = 2.0**-126  # lower bound of a divisor, for directions that are all zero


def narrow(encoding: int, scaled: Tensor, exponent: int, threshold: float = 0.0) -> Record:
    """Return the record of scaled * 2^exponent.

    The entries of `scaled` are at most 1 in magnitude; it is a matrix [P, Q] for factors. The energy of the record may
    be slightly below the threshold, which the caller must check.
    """
    rank, parts = -1, []
    if encoding == HALF:
        values = scaled.half()
        parts, back = [values.cpu().numpy().astype("<f2")], values
    else:
        found = exact(scaled, threshold)
        left, right, rank = found.left, found.right, found.rank
        if encoding == HALF_FACTORS:
            left, right = left.half(), right.half()
            parts = [left.cpu().numpy().astype("<f2"), right.cpu().numpy().astype("<f2")]
            back = left.float() @ right.float()
        else:
            tops = [side.clamp_min(TINY) for side in (left.abs().amax(0), right.abs().amax(1))]
            scale = (tops[0] * tops[1] / 127**2).float()
            left, right = (left / tops[0] * 127).round(), (right / tops[1][:, None] * 127).round()
            parts = [
                scale.cpu().numpy().astype("<f4"),
                left.cpu().numpy().astype("i1"),
                right.cpu().numpy().astype("i1"),
            ]
            back = (left * scale) @ right
    data = np.array([exponent], EXPONENT).tobytes() + b"".join(part.tobytes() for part in parts)
    energy = kept(scaled.reshape(1, -1), there_and_back(back.float(), exponent).reshape(1, -1))
    return Record(encoding, rank, np.frombuffer(data, np.uint8), energy)


def read_narrow(record: Record, layer: Layer) -> Tensor:
    """Return the float32 tensor of a record; raises WireError naming the layer if the record is invalid for it."""
    rows, columns = layer.matrix_shape
    rank = record.rank
    if record.encoding == HALF:
        require(record, layer, "rdsvd", HALF)
    elif not (layer.compressible and 0 <= rank <= min(rows, columns)):
        raise WireError(f"layer {layer.name}: rank {rank} of a {rows} x {columns} tensor")
    counts = {
        HALF: 2 * layer.numel,
        HALF_FACTORS: 2 * rank * (rows + columns),
        BYTE_FACTORS: rank * (rows + columns + 4),
    }
    if record.data.size != EXPONENT.itemsize + counts[record.encoding]:
        raise WireError(
            f"layer {layer.name}: {record.data.size} bytes instead of {EXPONENT.itemsize + counts[record.encoding]}"
        )
    data = record.data.tobytes()
    try:
        exponent = checked_exponent(int(np.frombuffer(data, EXPONENT, 1)[0]))
    except WireError as error:
        raise WireError(f"layer {layer.name}: {error}") from None
    scale = None
    if record.encoding == BYTE_FACTORS:
        scale = torch.from_numpy(np.frombuffer(data, "<f4", rank, EXPONENT.itemsize).astype(np.float32))
        numbers = np.frombuffer(data, "i1", offset=EXPONENT.itemsize + 4 * rank).astype(np.float32)
    else:
        numbers = np.frombuffer(data, "<f2", offset=EXPONENT.itemsize).astype(np.float32)
    values = torch.from_numpy(numbers)
    if record.encoding != HALF:
        left, right = values[: rows * rank].reshape(rows, rank), values[rows * rank :].reshape(rank, columns)
        values = canonical(left if scale is None else left * scale) @ canonical(right)
    return times_power_of_two(values, exponent).reshape(layer.shape)
