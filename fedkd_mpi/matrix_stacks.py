"""Operations on stacks of small matrices [n, rows, columns] whose bits do not depend on how many are in the stack.

A product in a batch may be rounded in another way in a larger batch, and LAPACK's results depend on whether a matrix
begins on a 64-byte boundary: on a CPU products are made one by one, and every matrix begins on one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedkd_mpi.network import ALIGNMENT
from fedkd_mpi.spectrum import eigenvectors


def empty(count: int, rows: int, columns: int, like: Tensor) -> Tensor:
    """Return room for a stack."""
    step = -(-rows * columns // ALIGNMENT) * ALIGNMENT
    return like.new_empty(count * step).as_strided((count, rows, columns), (step, columns, 1))


def stack(matrices: Sequence[Tensor]) -> Tensor:
    """Return matrices of one shape, either way round, with the short side first: [n, short, long]."""
    wides = [matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T for matrix in matrices]
    return torch.stack(wides, out=empty(len(wides), *wides[0].shape, wides[0]))


def pick(whole: Tensor, indices: Sequence[int] | np.ndarray) -> Tensor:
    """Return some of a stack, or itself where they are all."""
    if len(indices) == len(whole):
        return whole
    return torch.stack([whole[index] for index in indices], out=empty(len(indices), *whole.shape[1:], whole))


def products(left: Tensor, right: Tensor) -> Tensor:
    """Return left[i] @ right[i] of all i."""
    results = empty(len(left), left.shape[1], right.shape[2], left)
    if left.is_cuda:
        return torch.bmm(left, right, out=results)
    for one, other, result in zip(left.unbind(), right.unbind(), results.unbind(), strict=True):
        torch.mm(one, other, out=result)
    return results


def decomposed(symmetric: Tensor) -> tuple[Tensor, np.ndarray]:
    """Return spectrum.eigenvectors() of a stack."""
    if symmetric.is_cuda or symmetric.shape[1] ** 2 % ALIGNMENT == 0:
        return eigenvectors(symmetric)
    pairs = [eigenvectors(matrix) for matrix in symmetric.unbind()]
    return stack([basis for basis, _ in pairs]), np.stack([energies for _, energies in pairs])
