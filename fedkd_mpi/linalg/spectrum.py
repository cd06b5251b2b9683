"""Common parts of the factorisations: Gram matrices, their eigenvectors, energies and ranks."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

BOUNDARY = 1e-5  # a cumulative energy share this close to T is decided in float64
LONG = 2**14  # columns from which float32 sums of squares are too inaccurate for BOUNDARY and are summed in parts
BLOCK = 64  # rows of a Gram matrix computed at a time
LANES = 16  # blocks whose width is no multiple of this are multiplied up to three times slower (AVX-512)


def gram(wide: Tensor) -> Tensor:
    """Return wide @ wide.T [n, n]; the upper triangle of a large one is copied from the lower triangle.

    Products of long rows are summed in float64, in parts of LONG columns.
    """
    size, columns = wide.shape
    if columns > LONG:
        total = torch.zeros(size, size, dtype=torch.float64, device=wide.device)
        for at in range(0, columns, LONG):
            total += gram(wide[:, at : at + LONG])
        return total.to(wide.dtype)
    if size < 4 * BLOCK:
        return wide @ wide.T
    lower = wide.new_empty(size, size)
    for start in range(0, size, BLOCK):
        stop = min(start + BLOCK, size)
        torch.mm(wide[start:stop], wide[:stop].T, out=lower[start:stop, :stop])
        lower[:start, start:stop] = lower[start:stop, :start].T
    return lower


def energy_of(matrix: Tensor) -> float:
    """Return the sum of squares of a matrix: each row in the matrix's precision, the sum over rows in float64."""
    if matrix.shape[1] > LONG and matrix.dtype != torch.float64:
        return sum(energy_of(matrix[:, at : at + LONG]) for at in range(0, matrix.shape[1], LONG))
    return float(torch.linalg.vector_norm(matrix, dim=1).double().square().sum())


def eigenvectors(symmetric: Tensor) -> tuple[Tensor, np.ndarray]:
    """Eigenvectors and eigenvalues (float64, on the CPU: its small sums are cheapest), both falling; also of stacks."""
    try:
        values, vectors = torch.linalg.eigh(symmetric)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # CUDA's may give up on repeated eigenvalues; LAPACK's does not
        values, vectors = torch.linalg.eigh(symmetric.double().cpu())
        vectors = vectors.to(symmetric)
    return vectors.flip(-1), np.maximum(values.cpu().numpy()[..., ::-1].astype(np.float64), 0)


def smallest_rank(cumulative: np.ndarray, threshold: float) -> int:
    above = int(cumulative.searchsorted(threshold, side="right"))
    return min(above + 1, cumulative.size) if threshold < 1 else cumulative.size


def undecided(cumulative: np.ndarray, threshold: float) -> np.ndarray | np.bool_:
    return (np.abs(cumulative[..., :-1] - threshold) < BOUNDARY).any(-1)


def rounded(width: float) -> int:
    return math.ceil(width / LANES) * LANES


def spread(matrix: Tensor, count: int) -> Tensor:
    """Return the indices of `count` evenly spaced columns; columns are as good a start as random combinations."""
    return torch.arange(count, device=matrix.device) * matrix.shape[1] // count
