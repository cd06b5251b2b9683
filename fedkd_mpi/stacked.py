"""Small matrices of one shape, cut to their ranks together: fewer calls, and the bits that each has by itself.

A product in a batch may be rounded in another way in a larger batch, and LAPACK's results depend on whether a matrix
begins on a 64-byte boundary: on a CPU products are made one by one, and every matrix begins on one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedkd_mpi.network import ALIGNMENT
from fedkd_mpi.scaling import ordinary_exponent
from fedkd_mpi.spectrum import eigenvectors, smallest_rank, undecided
from fedkd_mpi.subspace import refined

CACHED = 2**18  # bytes of matrices that a CPU takes at a time: more of them leave its cache, and want new pages


def portions(indices: Sequence[int], matrix: Tensor) -> list[Sequence[int]]:
    """Return the indices of matrices like this one in portions to cut together."""
    size = len(indices) if matrix.is_cuda else max(CACHED // matrix.nbytes, 1)
    return [indices[at : at + size] for at in range(0, len(indices), size)]


def cut(matrices: Sequence[Tensor], threshold: float) -> list[tuple[Tensor, Tensor, float] | None]:
    """Return U diag(s) [P, K], V [K, Q] and the energy kept of each matrix, K as factorization.exact() has it.

    The matrices are float32 [P, Q] or [Q, P]; None stands for one that is zero, not finite, or of such a scale that
    squares may leave float32's range.
    """
    wides = _stack(matrices)
    largest = wides.abs().amax((1, 2)).tolist()
    good = [0 < value < math.inf and not ordinary_exponent(value) for value in largest]
    if not all(good):
        chosen = [matrix for matrix, is_good in zip(matrices, good, strict=True) if is_good]
        results = iter(cut(chosen, threshold) if chosen else [])
        return [next(results) if is_good else None for is_good in good]
    basis, energies = _eigenvectors(_products(wides, wides.mT))
    cumulative = energies.cumsum(-1) / energies.sum(-1, keepdims=True)
    ranks = [smallest_rank(row, threshold) for row in cumulative]
    kept = [float(row[rank - 1]) for row, rank in zip(cumulative, ranks, strict=True)]
    for index in np.flatnonzero(undecided(cumulative, threshold)):
        better, kept[index] = refined(wides[index], basis[index, :, : ranks[index] + 2], threshold)
        ranks[index] = better.shape[1]
        basis[index, :, : ranks[index]] = better
    basis = basis[..., : max(ranks)]
    projected = wides.new_zeros(len(wides), max(ranks), wides.shape[2])
    for rank, turn, wide, result in zip(ranks, basis.unbind(), wides.unbind(), projected.unbind(), strict=True):
        torch.mm(turn[:, :rank].T, wide, out=result[:rank])
    sigma = torch.linalg.vector_norm(projected, dim=-1)
    lefts = basis * sigma[:, None]
    rights = projected / sigma.clamp_min(torch.finfo(sigma.dtype).tiny)[..., None]
    results: list[tuple[Tensor, Tensor, float] | None] = []
    for index, (matrix, rank) in enumerate(zip(matrices, ranks, strict=True)):
        if matrix.shape[0] > matrix.shape[1]:
            left, right = projected[index, :rank].T, basis[index, :, :rank].T
        else:
            left, right = lefts[index, :, :rank], rights[index, :rank]
        results.append((left, right, kept[index]))
    return results


def _aligned(count: int, rows: int, columns: int, like: Tensor) -> Tensor:
    step = -(-rows * columns // ALIGNMENT) * ALIGNMENT
    return like.new_empty(count * step).as_strided((count, rows, columns), (step, columns, 1))


def _stack(matrices: Sequence[Tensor]) -> Tensor:
    """The matrices, the short side first: [matrices, short, long]."""
    wides = [matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T for matrix in matrices]
    return torch.stack(wides, out=_aligned(len(wides), *wides[0].shape, wides[0]))


def _products(left: Tensor, right: Tensor) -> Tensor:
    results = _aligned(len(left), left.shape[1], right.shape[2], left)
    if left.is_cuda:
        return torch.bmm(left, right, out=results)
    for one, other, result in zip(left.unbind(), right.unbind(), results.unbind(), strict=True):
        torch.mm(one, other, out=result)
    return results


def _eigenvectors(symmetric: Tensor) -> tuple[Tensor, np.ndarray]:
    if symmetric.is_cuda or symmetric.shape[1] ** 2 % ALIGNMENT == 0:
        return eigenvectors(symmetric)
    pairs = [eigenvectors(matrix) for matrix in symmetric.unbind()]
    return torch.stack([basis for basis, _ in pairs]), np.stack([energies for _, energies in pairs])
