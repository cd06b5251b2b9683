"""Small matrices of one shape, cut to their ranks together: fewer calls, and the bits that each has by itself."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from fedkd_mpi.matrix_stacks import decomposed, empty, pick, products, stack
from fedkd_mpi.scaling import ordinary_exponent
from fedkd_mpi.spectrum import smallest_rank, undecided
from fedkd_mpi.subspace import LEADING, Spectra, leading, refined

CACHED = 2**20  # bytes of matrices that a CPU takes at a time: the fewest calls for what stays in its cache


def portions(indices: Sequence[int], matrix: Tensor) -> list[Sequence[int]]:
    """Return the indices of matrices like this one in portions to cut together."""
    size = len(indices) if matrix.is_cuda else max(CACHED // matrix.nbytes, 1)
    return [indices[at : at + size] for at in range(0, len(indices), size)]


def cut(matrices: Sequence[Tensor], threshold: float) -> list[tuple[Tensor, Tensor, float] | None]:
    """Return U diag(s) [P, K], V [K, Q] and the energy kept of each matrix, K as factorization.exact() has it.

    The matrices are float32 [P, Q] or [Q, P]; None stands for one that is zero, not finite, or of such a scale that
    squares may leave float32's range.
    """
    wides = stack(matrices)
    largest = wides.abs().amax((1, 2)).tolist()
    good = [0 < value < math.inf and not ordinary_exponent(value) for value in largest]
    if not all(good):
        chosen = [matrix for matrix, is_good in zip(matrices, good, strict=True) if is_good]
        results = iter(cut(chosen, threshold) if chosen else [])
        return [next(results) if is_good else None for is_good in good]
    results: list[tuple[Tensor, Tensor, float] | None] = [None] * len(matrices)
    for indices, spectra in _spectra(products(wides, wides.mT), threshold):
        tall = [matrices[index].shape[0] > matrices[index].shape[1] for index in indices]
        for index, factors in zip(indices, _factors(pick(wides, indices), tall, spectra, threshold), strict=True):
            results[index] = factors
    return results


def _spectra(grams: Tensor, threshold: float) -> Iterator[tuple[list[int], Spectra]]:
    """Yield directions for some of the Gram matrices, by index, until all have them: a few where those will do."""
    rest = list(range(len(grams)))
    if grams.shape[1] >= LEADING and threshold < 1 and not grams.is_cuda:
        indices, spectra = leading(grams, threshold)
        if indices:
            yield indices, spectra
        rest = sorted(set(rest) - set(indices))
    if rest:
        basis, energies = decomposed(pick(grams, rest))
        yield rest, Spectra(basis, energies.cumsum(-1) / energies.sum(-1, keepdims=True))


def _factors(
    wides: Tensor, tall: Sequence[bool], spectra: Spectra, threshold: float
) -> Iterator[tuple[Tensor, Tensor, float]]:
    basis, cumulative = spectra
    ranks = [smallest_rank(row, threshold) for row in cumulative]
    kept = [float(row[rank - 1]) for row, rank in zip(cumulative, ranks, strict=True)]
    for index in np.flatnonzero(undecided(cumulative, threshold)):
        better, kept[index] = refined(wides[index], basis[index, :, : ranks[index] + 2], threshold)
        ranks[index] = better.shape[1]
        basis[index, :, : ranks[index]] = better
    basis = basis[..., : max(ranks)]
    projected = empty(len(wides), max(ranks), wides.shape[2], wides).zero_()
    for rank, turn, wide, result in zip(ranks, basis.unbind(), wides.unbind(), projected.unbind(), strict=True):
        torch.mm(turn[:, :rank].T, wide, out=result[:rank])
    sigma = torch.linalg.vector_norm(projected, dim=-1)
    lefts = basis * sigma[:, None]
    rights = projected / sigma.clamp_min(torch.finfo(sigma.dtype).tiny)[..., None]
    for index, (is_tall, rank) in enumerate(zip(tall, ranks, strict=True)):
        if is_tall:
            left, right = projected[index, :rank].T, basis[index, :, :rank].T
        else:
            left, right = lefts[index, :, :rank], rights[index, :rank]
        yield left, right, kept[index]
