"""One memory layout for tensors that are multiplied: the rounding of BLAS depends on strides and alignment."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

ALIGNMENT = 64  # bytes; torch's allocations are aligned to it, numpy's and views of larger tensors need not be


def canonical(tensor: Tensor) -> Tensor:
    """Return the values in row-major order, contiguous and aligned; without a copy if the tensor already is."""
    tensor = tensor.detach()
    flat = tensor.reshape(-1).contiguous()
    if flat.data_ptr() % ALIGNMENT:
        flat = flat.clone()
    return flat.view(tensor.shape)  # also resets the strides of dimensions of length 1


def canonicals(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return canonical() of each tensor."""
    return [canonical(tensor) for tensor in tensors]
