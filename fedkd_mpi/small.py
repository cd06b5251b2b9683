"""Many small matrices factorised at once, each with the bits that it has alone.

What is done to all of them is single operations on stacks. numpy multiplies, and LAPACK decomposes, the matrices of a
stack one after another, as each would be by itself; torch's batched products may round otherwise in a larger batch.

The directions come from one block on the Gram matrix S, two power steps from sums of its columns. K is the smallest
rank if K - 1 directions provably hold too little. In a basis that begins with K - 1 Ritz vectors, of values t_1 >= .. >=
t_(K-1), S = [[diag(t), R^T], [R, C]]. With mu above the eigenvalues of C and g = t_(K-1) - mu > 0, S is at most
[[diag(t) + R^T R / g, 0], [0, C + g]] (the difference is a square), so that the K - 1 largest eigenvalues of S have no
larger sum than t_1 + .. + t_(K-1) + |R|^2 / g.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedkd_mpi.spectrum import BOUNDARY

BLOCK = 16  # directions in a block
WORTH = 32  # short side from which a block is cheaper than all eigenvectors
ALIGNED = 16  # float32 entries: products and decompositions may be rounded otherwise elsewhere in memory
SINGLE = 2**18  # multiplications up to which numpy's BLAS starts no threads: it does not heed torch's number of them
ORDINARY = 2.0**-40, 2.0**40  # energies whose squares, and parts of them, are in float32's range by far
ERROR = 1e-6  # of the squared Frobenius norm of S: what rounding may take from its part outside of the block

Found = tuple[Tensor, float]
Spectra = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def factorize(matrices: Sequence[Tensor], threshold: float) -> list[Found | None]:
    """Return the factors of the smallest rank K above the energy threshold, and the share of the energy they keep.

    The matrices are float32 [P, Q] on the CPU; the factors U diag(s) [P, K], then V [K, Q], flat. None where the short
    side does not suit, where K is not proven here, or where the scale is not ordinary: zero, say, or not finite.
    """
    found: list[Found | None] = [None] * len(matrices)
    sizes: dict[int, dict[torch.Size, list[int]]] = {}
    for index, matrix in enumerate(matrices):
        size = min(matrix.shape)
        if 1 < size <= BLOCK or WORTH <= size:
            sizes.setdefault(size, {}).setdefault(matrix.shape, []).append(index)
    with np.errstate(all="ignore"):  # in matrices that are not finite, and directions that are not used
        for size, shapes in sizes.items():
            order = [index for group in shapes.values() for index in group]
            stacks = [_stacked([matrices[index] for index in group]) for group in shapes.values()]
            for index, factors in zip(order, _factors(stacks, size, threshold), strict=True):
                found[index] = factors
    return found


def _empty(count: int, rows: int, columns: int) -> np.ndarray:
    """Room for matrices one after another, each of which begins on 64 bytes."""
    stack = torch.empty(count, -(-rows * columns // ALIGNED) * ALIGNED).numpy()
    return stack[:, : rows * columns].reshape(count, rows, columns)


def _stacked(matrices: Sequence[Tensor]) -> np.ndarray:
    stack = _empty(len(matrices), *matrices[0].shape)
    for matrix, place in zip(matrices, stack, strict=True):
        place[:] = matrix.numpy()
    return stack


def _product(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """one @ other, of stacks."""
    result = _empty(len(one), one.shape[1], other.shape[2])
    if one.shape[1] * other[0].size <= SINGLE:
        return np.matmul(one, other, out=result)
    for parts in zip(*(torch.from_numpy(stack).unbind() for stack in (one, other, result)), strict=True):
        torch.mm(*parts[:2], out=parts[2])
    return result


def _factors(stacks: Sequence[np.ndarray], size: int, threshold: float) -> list[Found | None]:
    """As factorize(), of stacks of matrices [n, P, Q] that have one short side."""
    grams = np.concatenate([_gram(stack) for stack in stacks])
    totals = grams.trace(axis1=1, axis2=2, dtype=np.float64)
    sound = (totals > ORDINARY[0]) & (totals < ORDINARY[1])
    grams[~sound] = 0
    *spectra, directions = (_all if size <= BLOCK else _leading)(grams, totals)
    spectra = zip(totals.tolist(), sound.tolist(), *(part.tolist() for part in spectra), strict=True)
    ranks = [proven(total, *spectrum, threshold) if usable else (0, 0.0) for total, usable, *spectrum in spectra]
    found: list[Found | None] = []
    for stack in stacks:
        mine = slice(len(found), len(found) + len(stack))
        for left, right, (rank, energy) in zip(*_sides(stack, directions[mine]), ranks[mine], strict=True):
            numbers = np.concatenate([left[:, :rank], right[:rank]], axis=None) if rank else None
            found.append(None if numbers is None else (torch.from_numpy(numbers), energy))
    return found


def _gram(stack: np.ndarray) -> np.ndarray:
    other = stack.swapaxes(1, 2)
    return _product(stack, other) if stack.shape[1] <= stack.shape[2] else _product(other, stack)


def _sides(stack: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """U diag(s) and V from orthonormal directions of the short side, rows [n, BLOCK, size]."""
    if stack.shape[1] > stack.shape[2]:
        return _product(stack, directions.swapaxes(1, 2)), directions
    right = _product(directions, stack)
    sigma = np.sqrt(np.einsum("nij,nij->ni", right, right))
    return directions.swapaxes(1, 2) * sigma[:, None], right / sigma[:, :, None]


def _all(grams: np.ndarray, totals: np.ndarray) -> Spectra:
    """All eigenvectors, as _leading() returns them."""
    size = grams.shape[1]
    padded = np.zeros((len(grams), BLOCK, BLOCK), np.float32)
    padded[:, :size, :size] = grams
    index = np.arange(size, BLOCK)
    padded[:, index, index] = -totals[:, None]  # negative, and so apart from the others and after them
    values, vectors = _falling(padded)
    return values, np.zeros_like(values), np.zeros_like(totals), vectors[:, :, :size]


def _leading(grams: np.ndarray, totals: np.ndarray) -> Spectra:
    """BLOCK Ritz values, falling, their squared residuals, a bound of what is outside, and their vectors, rows."""
    size, squares = grams.shape[1], np.einsum("nij,nij->ni", grams, grams).sum(1, dtype=np.float64)
    start = grams[:, : size // BLOCK * BLOCK].reshape(-1, size // BLOCK, BLOCK, size).sum(1) @ grams
    block = torch.linalg.qr(torch.from_numpy(start).mT).Q.mT.numpy()
    image = block @ grams
    values, turn = _falling(image @ block.swapaxes(1, 2))
    directions = _product(turn, block)
    residuals = turn @ image - values[:, :, None].astype(np.float32) * directions
    errors = np.einsum("nij,nij->ni", residuals, residuals).astype(np.float64)
    trace = totals * (1 + BOUNDARY) - values.sum(1)
    norm = np.sqrt(np.maximum(squares - (values**2 + 2 * errors).sum(1), 0) + ERROR * squares)
    return values, errors, np.minimum(trace, norm), directions


def _falling(symmetric: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, falling, float64 [n, BLOCK], and eigenvectors, rows [n, BLOCK, BLOCK]."""
    values, vectors = torch.linalg.eigh(torch.from_numpy(symmetric))
    rows = _empty(*symmetric.shape)
    rows[:] = vectors.mT.numpy()[:, ::-1]
    return values.numpy()[:, ::-1].astype(np.float64), rows


def proven(
    total: float, values: Sequence[float], errors: Sequence[float], outside: float, threshold: float
) -> tuple[int, float]:
    """Return K and the share of the energy in K Ritz vectors; K is 0 if it is not proven to be the smallest.

    `errors` are the squared norms of the vectors' residuals, `outside` is above the eigenvalues outside of all of them.
    Nor is it proven where the energies are so near the threshold that rounding could tell.
    """
    below = held = 0.0
    for less, value in enumerate(values):  # noqa: B007
        below, held = held, held + value
        if held > threshold * total:
            break
    if held < (threshold + BOUNDARY) * total:
        return 0, 0.0
    if head := sum(errors[:less]):
        # the larger eigenvalue of [[value, e], [e, outside]] bounds those outside of the first K - 1
        mu = (value + outside) / 2 + math.hypot((value - outside) / 2, math.sqrt(sum(errors[less:])))
        gap = values[less - 1] - mu
        below = below + head / gap if gap > 0 else math.inf
    return (less + 1, held / total) if below < (threshold - BOUNDARY) * total else (0, 0.0)
