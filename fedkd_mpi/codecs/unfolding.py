"""The unfoldings of a tensor into a matrix; which one has the lowest rank depends on the layer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def unfoldings(shape: Sequence[int]) -> list[int]:
    """Return the unfoldings of a shape.

    0 is P x rest. A convolution [O, I, kh, kw] also has 1, (O kh) x (I kw), and 2, (O kh kw) x I.
    """
    return [0, 1, 2] if len(shape) == 4 and shape[2] * shape[3] > 1 else [0]


def unfolded_shape(shape: Sequence[int], unfolding: int) -> tuple[int, int]:
    """Return (rows, columns) of an unfolding."""
    out, *rest = shape
    kept = {0: 0, 1: 1, 2: 2}[unfolding]
    rows, columns = out, 1
    for size in rest[1 : 1 + kept]:
        rows *= size
    for size in rest[:1] + rest[1 + kept :]:
        columns *= size
    return rows, columns


def unfold(tensor: Tensor, unfolding: int) -> Tensor:
    """Return the matrix of an unfolding."""
    rows, columns = unfolded_shape(tensor.shape, unfolding)
    order = {0: None, 1: (0, 2, 1, 3), 2: (0, 2, 3, 1)}[unfolding]
    return (tensor if order is None else tensor.permute(order)).reshape(rows, columns)


def fold(matrix: Tensor, unfolding: int, shape: Sequence[int]) -> Tensor:
    """Return the tensor of the given shape with this unfolding; the inverse of unfold()."""
    if unfolding == 0:
        return matrix.reshape(tuple(shape))
    out, into, height, width = shape
    if unfolding == 1:
        return matrix.reshape(out, height, into, width).permute(0, 2, 1, 3).contiguous()
    return matrix.reshape(out, height, width, into).permute(0, 3, 1, 2).contiguous()
