"""Factorisation of many small matrices at once, with the same bits as one by one.

All operations work on stacks of matrices. numpy multiplies and LAPACK decomposes the matrices of a stack one after
another, with the same result as for a single matrix. torch's batched products are not used because their rounding may
depend on the size of the batch.

The directions are a block of Ritz vectors of the Gram matrix S, after two power steps from sums of its columns. K is
the smallest rank if K - 1 directions provably contain too little energy. In a basis that begins with K - 1 Ritz vectors
with values t_1 >= ... >= t_(K-1), S = [[diag(t), R^T], [R, C]]. With mu above the eigenvalues of C and
g = t_(K-1) - mu > 0, S is at most [[diag(t) + R^T R / g, 0], [0, C + g]] (the difference is a square). So the sum of
the K - 1 largest eigenvalues of S is at most t_1 + ... + t_(K-1) + |R|^2 / g.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from fedkd_mpi.linalg.spectrum import BOUNDARY

BLOCK = 16  # directions in a block
WORTH = 32  # short side from which a block is cheaper than all eigenvectors
SINGLE = 2**18  # multiplications up to which numpy's BLAS uses one thread; it ignores torch's number of threads
ORDINARY = 2.0**-40, 2.0**40  # bounds of energies whose squares are well within float32's range
ERROR = 1e-6  # share of the squared Frobenius norm of S that rounding may remove from its part outside the block

Found = tuple[Tensor, float]


def factorize(matrices: Sequence[Tensor], threshold: float) -> list[Found | None]:
    """Return for each matrix the factors of the smallest rank K above the energy threshold and the kept energy share.

    The matrices are float32 [P, Q] on the CPU. The factors are U diag(s) [P, K], then V [K, Q], flat. The result is
    None for a matrix whose short side is not suitable, whose K is not proven here, or whose scale is not ordinary (for
    example zero or not finite).
    """
    sizes: dict[int, dict[torch.Size, list[int]]] = {}
    for index, matrix in enumerate(matrices):
        size = min(matrix.shape)
        if 1 < size <= BLOCK or size >= WORTH:
            sizes.setdefault(size, {}).setdefault(matrix.shape, []).append(index)
    found: list[Found | None] = [None] * len(matrices)
    if not sizes:
        return found
    with np.errstate(all="ignore"):  # for matrices that are not finite, and for unused directions
        groups = [_Group(matrices, shapes.values()) for shapes in sizes.values()]
        values, vectors = torch.linalg.eigh(torch.from_numpy(np.concatenate([group.inner for group in groups])))
        values, turns = values.numpy()[:, ::-1], np.ascontiguousarray(vectors.mT.numpy()[:, ::-1])
        at = 0
        for group in groups:
            mine = slice(at, at + len(group.order))
            for index, factors in zip(group.order, group.factors(values[mine], turns[mine], threshold), strict=True):
                found[index] = factors
            at = mine.stop
    return found


class _Group:
    """Matrices with the same short side: stacks by shape, their Gram matrices S and blocks of directions (as rows).

    `inner` is S projected on the block, [n, BLOCK, BLOCK], with zeros if the block is wider than S.
    """

    def __init__(self, matrices: Sequence[Tensor], shapes: Iterable[Sequence[int]]):
        self.order = [index for indices in shapes for index in indices]
        self.stacks = [_stacked([matrices[index] for index in indices]) for indices in shapes]
        self.wides = [part if part.shape[1] <= part.shape[2] else part.swapaxes(1, 2) for part in self.stacks]
        self.grams = np.concatenate([_gram(wide) for wide in self.wides])
        self.totals = np.einsum("nii->ni", self.grams).astype(np.float64).sum(1).tolist()
        for gram, total in zip(self.grams, self.totals, strict=True):
            if not ORDINARY[0] < total < ORDINARY[1]:
                gram[:] = 0  # the result of this matrix will be None
        self.block = _block(self.grams)
        self.image = self.block @ self.grams
        self.inner = self.image @ self.block.swapaxes(-1, -2)

    def factors(self, values: np.ndarray, turn: np.ndarray, threshold: float) -> Iterator[Found | None]:
        """Yield the factors in order, given eigenvalues [n, BLOCK] and eigenvectors (as rows) of `inner`."""
        directions = turn @ self.block
        residuals = turn @ self.image
        residuals -= values[:, :, None] * directions
        errors = np.einsum("nij,nij->ni", residuals, residuals)
        squares = np.einsum("nij,nij->ni", self.grams, self.grams).astype(np.float64).sum(1)
        spectra = zip(self.totals, squares.tolist(), values.tolist(), errors.tolist(), strict=True)
        at = 0
        for stack, wide in zip(self.stacks, self.wides, strict=True):
            sides = _sides(wide, directions[at : at + len(stack)], stack is not wide)
            at += len(stack)
            for left, right, spectrum in zip(*sides, spectra, strict=False):
                rank, energy = proven(*spectrum, threshold)
                numbers = np.concatenate([left[:, :rank], right[:rank]], axis=None) if rank else None
                yield None if numbers is None else (torch.from_numpy(numbers), energy)


def _stacked(matrices: Sequence[Tensor]) -> np.ndarray:
    return np.concatenate([matrix.numpy() for matrix in matrices]).reshape(-1, *matrices[0].shape)


def _gram(wide: np.ndarray) -> np.ndarray:
    """Return wide @ wide.T of a stack."""
    step = SINGLE // wide.shape[1] ** 2
    parts = [wide[:, :, at : at + step] for at in range(0, wide.shape[2], step)]
    result = parts[0] @ parts[0].swapaxes(1, 2)
    for part in parts[1:]:
        result += part @ part.swapaxes(1, 2)
    return result


def _block(grams: np.ndarray) -> np.ndarray:
    size = grams.shape[1]
    if size <= BLOCK:
        return np.eye(BLOCK, size, dtype=np.float32)
    # Sums of columns are nearly as good a start as random combinations.
    start = grams[:, : size // BLOCK * BLOCK].reshape(-1, size // BLOCK, BLOCK, size).sum(1) @ grams
    return torch.linalg.qr(torch.from_numpy(start).mT).Q.mT.numpy()


def _sides(wide: np.ndarray, directions: np.ndarray, turned: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return U diag(s) and V of matrices from directions of their short side (as rows).

    `turned` tells that `wide` are the transposed matrices.
    """
    step = SINGLE // directions[0].size
    parts = [directions @ wide[:, :, at : at + step] for at in range(0, wide.shape[2], step)]
    projected = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)
    if turned:
        return projected.swapaxes(1, 2), directions
    sigma = np.sqrt(np.einsum("nij,nij->ni", projected, projected))[:, :, None]
    return (directions * sigma).swapaxes(1, 2), projected / sigma


def proven(
    total: float, squares: float, values: Sequence[float], errors: Sequence[float], threshold: float
) -> tuple[int, float]:
    """Return K and the share of the energy in K Ritz vectors; K is 0 if it is not proven to be the smallest.

    `total` and `squares` are the trace and the squared Frobenius norm of S, `values` are the Ritz values in descending
    order, and `errors` are the squared norms of the residuals of their vectors. K is also 0 if an energy is so close to
    the threshold that rounding could decide.
    """
    below = held = 0.0
    for less, value in enumerate(values):  # noqa: B007
        below, held = held, held + value
        if held > threshold * total:
            break
    if not held > (threshold + BOUNDARY) * total:
        return 0, 0.0
    if less:
        # Outside the block, S has this trace and this squared norm; each of them bounds its eigenvalues.
        trace = total * (1 + BOUNDARY) - sum(values)
        norm = squares * (1 + ERROR) - sum(value * value for value in values) - 2 * sum(errors)
        outside = min(trace, math.sqrt(max(norm, ERROR * squares)))
        # The larger eigenvalue of [[value, e], [e, outside]] bounds all eigenvalues except the first K - 1.
        mu = (value + outside) / 2 + math.hypot((value - outside) / 2, math.sqrt(sum(errors[less:])))
        gap, head = values[less - 1] - mu, sum(errors[:less])
        below = below + head / gap if gap > 0 else below if gap == head == 0 else math.inf
    return (less + 1, min(held / total, 1.0)) if below < (threshold - BOUNDARY) * total else (0, 0.0)
