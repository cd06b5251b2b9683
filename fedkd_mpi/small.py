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
SINGLE = 2**18  # multiplications up to which numpy's BLAS starts no threads: it does not heed torch's number of them
ORDINARY = 2.0**-40, 2.0**40  # energies whose squares, and parts of them, are in float32's range by far
ERROR = 1e-6  # of the squared Frobenius norm of S: what rounding may take from its part outside of the block

Found = tuple[Tensor, float]


def factorize(matrices: Sequence[Tensor], threshold: float) -> list[Found | None]:
    """Return the factors of the smallest rank K above the energy threshold, and the share of the energy they keep.

    The matrices are float32 [P, Q] on the CPU; the factors U diag(s) [P, K], then V [K, Q], flat. None where the short
    side does not suit, where K is not proven here, or where the scale is not ordinary: zero, say, or not finite.
    """
    sizes: dict[int, dict[torch.Size, list[int]]] = {}
    for index, matrix in enumerate(matrices):
        size = min(matrix.shape)
        if 1 < size <= BLOCK or WORTH <= size:
            sizes.setdefault(size, {}).setdefault(matrix.shape, []).append(index)
    found: list[Found | None] = [None] * len(matrices)
    with np.errstate(all="ignore"):  # in matrices that are not finite, and directions that are not used
        for shapes in sizes.values():
            order = [index for group in shapes.values() for index in group]
            stacks = [_stacked([matrices[index] for index in group]) for group in shapes.values()]
            for index, factors in zip(order, _factors(stacks, threshold), strict=True):
                found[index] = factors
    return found


def _stacked(matrices: Sequence[Tensor]) -> np.ndarray:
    return np.concatenate([matrix.numpy() for matrix in matrices]).reshape(-1, *matrices[0].shape)


def _factors(stacks: Sequence[np.ndarray], threshold: float) -> list[Found | None]:
    """As factorize(), of stacks of matrices [n, P, Q] that have one short side."""
    wides = [stack if stack.shape[1] <= stack.shape[2] else stack.swapaxes(1, 2) for stack in stacks]
    grams = np.concatenate([_gram(wide) for wide in wides])
    totals = grams.trace(axis1=1, axis2=2, dtype=np.float64)
    sound = (totals > ORDINARY[0]) & (totals < ORDINARY[1])
    if not sound.all():
        grams[~sound] = 0
    *spectra, directions = _leading(grams, totals)
    spectra = zip(sound.tolist(), totals.tolist(), *(part.tolist() for part in spectra), strict=True)
    ranks = [proven(*spectrum, threshold) if usable else (0, 0.0) for usable, *spectrum in spectra]
    found: list[Found | None] = []
    for stack, wide in zip(stacks, wides, strict=True):
        mine = slice(len(found), len(found) + len(stack))
        sides = _sides(wide, directions[mine], stack is not wide)
        for left, right, (rank, energy) in zip(*sides, ranks[mine], strict=True):
            numbers = np.concatenate([left[:, :rank], right[:rank]], axis=None) if rank else None
            found.append(None if numbers is None else (torch.from_numpy(numbers), energy))
    return found


def _gram(wide: np.ndarray) -> np.ndarray:
    """wide @ wide.T, of a stack."""
    step = SINGLE // wide.shape[1] ** 2
    parts = [wide[:, :, at : at + step] for at in range(0, wide.shape[2], step)]
    result = parts[0] @ parts[0].swapaxes(1, 2)
    for part in parts[1:]:
        result += part @ part.swapaxes(1, 2)
    return result


def _sides(wide: np.ndarray, directions: np.ndarray, turned: bool) -> tuple[np.ndarray, np.ndarray]:
    """U diag(s) and V of matrices, or of their transposes, from directions of the short side, rows."""
    step = SINGLE // directions[0].size
    parts = [directions @ wide[:, :, at : at + step] for at in range(0, wide.shape[2], step)]
    projected = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)
    if turned:
        return projected.swapaxes(1, 2), directions
    sigma = np.sqrt(np.einsum("nij,nij->ni", projected, projected))[:, :, None]
    return (directions * sigma).swapaxes(1, 2), projected / sigma


def _leading(grams: np.ndarray, totals: np.ndarray) -> tuple[np.ndarray, ...]:
    """BLOCK Ritz values, falling, their squared residuals, a bound of what is outside, their vectors, rows."""
    size = grams.shape[1]
    if size > BLOCK:
        start = grams[:, : size // BLOCK * BLOCK].reshape(-1, size // BLOCK, BLOCK, size).sum(1) @ grams
        block = torch.linalg.qr(torch.from_numpy(start).mT).Q.mT.numpy()
    else:
        block = np.eye(BLOCK, size, dtype=np.float32)
    image = block @ grams
    values, vectors = torch.linalg.eigh(torch.from_numpy(image @ block.swapaxes(-1, -2)))
    values, turn = values.numpy()[:, ::-1], np.ascontiguousarray(vectors.mT.numpy()[:, ::-1])
    directions = turn @ block
    residuals = turn @ image
    residuals -= values[:, :, None] * directions
    errors = np.einsum("nij,nij->ni", residuals, residuals)
    values = values.astype(np.float64)
    squares = np.einsum("nij,nij->ni", grams, grams).sum(1, dtype=np.float64)
    rest = squares * (1 + ERROR) - (values**2 + 2 * errors).sum(1)
    outside = np.minimum(totals * (1 + BOUNDARY) - values.sum(1), np.sqrt(np.maximum(rest, ERROR * squares)))
    return values, errors, outside, directions


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
