"""All vectors of an update quantised with one step: in small models, 16 bits per bias are a third of a message."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedkd_mpi.codecs import symbols
from fedkd_mpi.codecs.rate_distortion import checked, dense
from fedkd_mpi.codecs.tags import POOLED
from fedkd_mpi.codecs.wire import Record, WireError, checked_exponent
from fedkd_mpi.linalg.scaling import exponent_of, times_power_of_two
from fedkd_mpi.models.layer import Layer

HEAD = struct.Struct("<hf")


def pool(tensors: Sequence[Tensor], threshold: float) -> list[Record] | None:
    """Return one record per vector that keep in total more than the threshold's share of the energy of all vectors.

    Returns None if all vectors are zero or no step is found. A vector of small norm may become zero, so this is for
    error feedback only.
    """
    flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
    largest = float(flat.abs().max()) if flat.numel() else 0.0
    if largest == 0:
        return None
    exponent = exponent_of(largest)
    scaled = times_power_of_two(flat, -exponent)[None]
    found = checked(scaled, lambda aim: dense(scaled, aim), exponent, threshold)
    if found is None:
        return None
    integers = found.matrices[0][0].to(torch.int16).cpu().numpy()
    ends = np.cumsum([tensor.numel() for tensor in tensors])[:-1]
    body = symbols.encode([part[None] for part in np.split(integers, ends)])
    data = np.concatenate([np.frombuffer(HEAD.pack(exponent, found.step), np.uint8), body])
    return [Record(POOLED, -1, part, found.energy) for part in (data, *[data[:0]] * (len(tensors) - 1))]


def unpool(records: Sequence[Record], layers: Sequence[Layer]) -> list[Tensor]:
    """Return the vectors of pool(); raises WireError naming the first layer if the records are invalid."""
    first, *rest = records
    try:
        if any(record[:2] != (POOLED, -1) for record in records) or any(record.data.size for record in rest):
            raise WireError("some vectors are pooled and others are not")
        most = 4 * sum(layer.numel for layer in layers)
        if not HEAD.size <= first.data.size < most:  # larger records are sent raw instead
            raise WireError(f"{first.data.size} bytes; there must be at least {HEAD.size} and less than {most}")
        exponent, step = HEAD.unpack(first.data[: HEAD.size].tobytes())
        if not (math.isfinite(step) and step > 0):
            raise WireError(f"invalid step {step}")
        checked_exponent(exponent)
        parts = symbols.decode(first.data[HEAD.size :], [(1, layer.numel) for layer in layers])
    except WireError as error:
        raise WireError(f"layer {layers[0].name}: {error}") from None
    scaled = [torch.from_numpy(part.astype(np.float32)) * step for part in parts]
    return [times_power_of_two(t, exponent).reshape(layer.shape) for t, layer in zip(scaled, layers, strict=True)]
