"""One layout in memory for tensors to be multiplied: BLAS may round otherwise where strides or alignment differ."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

ALIGNMENT = 64  # bytes: torch's own memory begins there, numpy's and views into a larger tensor may not


def canonical(tensor: Tensor) -> Tensor:
    """Return the values row-major, without gaps, from an aligned address: the tensor's own memory where it is so."""
    tensor = tensor.detach()
    flat = tensor.reshape(-1).contiguous()
    if flat.data_ptr() % ALIGNMENT:
        flat = flat.clone()
    return flat.view(tensor.shape)  # also where a side of length 1 has a stride of its own


def canonicals(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return canonical() of each."""
    return [canonical(tensor) for tensor in tensors]
