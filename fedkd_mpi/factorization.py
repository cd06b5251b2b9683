"""The energy-threshold low-rank factorisation the codecs stand on: smallest rank K, or nearly so in less time.

All work is on the Gram matrix of the short side. Squaring costs no accuracy at the thresholds in use (T <= 0.999);
scale does, so a power of two is taken out first, and a cumulative energy near T is decided in float64. Unlike gesdd,
eigh of a symmetric matrix does not fail to converge; and where few directions hold the energy they are found without
it, by subspace iteration, and a Cholesky factorisation proves that none has been missed.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedkd_mpi.scaling import exponent_of, ordinary_exponent, times_power_of_two

BOUNDARY = 1e-5  # a cumulative energy this close to T is decided in float64
LARGE = 128  # short side from which an eigendecomposition costs more than trying without
WARM = 48  # the same where a start is known
BLOCK = 64  # rows of a Gram matrix computed at a time
SPARSE = 192  # rows from which it is worth looking for zero ones
NARROW = 0.15  # share of the short side up to which a block of directions is multiplied by the matrix itself
WIDE = 0.4  # share of the short side above which a start is of no use
WIDTHS = (0.04, 0.12)  # the same for blocks tried on the Gram matrix, one after another
HOPELESS = 2.5  # times the error budget outside of one block: the next one will not do either
SWEEPS = 4  # of subspace iteration at most
LANES = 16  # blocks of another width than a multiple of this are multiplied up to three times slower (AVX-512)


class Factors(NamedTuple):
    """matrix ~ left @ right: left = U diag(s) [P, K], right = V [K, Q], energy = kept share of the squared s."""

    left: Tensor
    right: Tensor
    energy: float

    @property
    def rank(self) -> int:
        """K, the number of singular directions kept."""
        return self.right.shape[0]


class _Prepared(NamedTuple):
    """A matrix scaled by 2^-exponent, without the zero rows of a sparse update."""

    matrix: Tensor
    exponent: int
    rows: Tensor | None  # mask of the rows left in; None = all


def exact(matrix: Tensor, threshold: float) -> Factors:
    """Return the factors of the smallest rank K with sum_{j<=K} s_j^2 / sum_j s_j^2 > threshold.

    matrix is float32 [P, Q]; K may be full, and is 0 only for an all-zero matrix (Wu et al. 2022, Methods).
    Raises ValueError if the matrix is not finite: LAPACK would fail to converge, or not return at all.
    """
    prepared = _prepare(matrix)
    if prepared is None:
        return _nothing(matrix)
    wide = prepared.matrix if prepared.matrix.shape[0] <= prepared.matrix.shape[1] else prepared.matrix.T
    symmetric = gram(wide)
    found = _few(symmetric, wide, threshold) if wide.shape[0] >= LARGE and threshold < 1 else None
    basis, energy = found or _all(symmetric, wide, threshold)
    return _assemble(matrix, prepared, basis, basis.T @ wide, energy)


def fast(matrix: Tensor, threshold: float, start: Tensor | None) -> Factors:
    """Return factors that keep more than the threshold's share of the energy at, or just above, the smallest rank.

    start is the `left` of the same layer's last factors, whose directions are taken two steps of power iteration
    further (Vogels et al. 2019), on the Gram matrix where they are many; where there is no start, where it is wide, or
    where the energy is not reached, the result is that of exact(). Raises ValueError as exact() does.
    """
    short = min(matrix.shape)
    width = 0 if start is None or not start.numel() else _rounded(1.2 * start.shape[1] + 4)
    if not 0 < width <= max(WIDE * short, LANES) or short < WARM:
        return exact(matrix, threshold)
    prepared = _prepare(matrix)
    if prepared is None:
        return _nothing(matrix)
    tall = prepared.matrix.shape[0] > prepared.matrix.shape[1]
    wide, start = prepared.matrix, start if prepared.rows is None else start[prepared.rows]
    start = times_power_of_two(start, -exponent_of(float(start.abs().max())))
    if tall:
        wide, start = wide.T, wide.T @ start
    symmetric = gram(wide) if width > NARROW * short else None
    block = torch.cat([start, wide[:, _spread(wide, width - start.shape[1])]], 1)
    for _ in range(2):
        block = torch.linalg.qr(wide @ (wide.T @ block) if symmetric is None else symmetric @ block).Q
    projected = block.T @ wide
    turn, energies = _directions(projected @ projected.T)
    cumulative = energies.cumsum() / energy_of(prepared.matrix)
    if not cumulative[-1] > threshold + BOUNDARY:
        return exact(matrix, threshold)
    rank = _smallest_rank(cumulative, threshold + BOUNDARY / 10)
    turn = turn[:, :rank]
    return _assemble(matrix, prepared, block @ turn, turn.T @ projected, float(cumulative[rank - 1]))


def directions(wide: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Return left singular vectors [n, k] and squared singular values (float64 [n], on the CPU), both falling.

    wide is float32 [n, m], n <= m, of ordinary scale. k may be less than n where far fewer directions hold the
    threshold's share of the energy; they are then close to the singular ones, and the values after the k-th all zero
    but the last, which is all that remains.
    """
    symmetric = gram(wide)
    size = wide.shape[0]
    for width in sorted({_rounded(share * size) for share in WIDTHS}) if size >= LARGE and threshold < 1 else ():
        block = symmetric[:, _spread(symmetric, width)]
        for _ in range(2):
            block = symmetric @ torch.linalg.qr(block).Q
        block = torch.linalg.qr(block).Q
        turn, values = _directions(block.T @ (symmetric @ block))
        total = float(symmetric.diagonal().sum(dtype=torch.float64))
        if values[: width // 2].sum() > threshold * total:
            rest = np.zeros(size - width)
            rest[-1] = max(total - float(values.sum()), 0.0)
            return block @ turn, torch.from_numpy(np.concatenate([values, rest]))
        if total - values.sum() > HOPELESS * (1 - threshold) * total:
            break
    basis, values = _directions(symmetric)
    return basis, torch.from_numpy(values)


def gram(wide: Tensor) -> Tensor:
    """Return wide @ wide.T [n, n], of which large ones are computed block by block, without the upper triangle."""
    size = wide.shape[0]
    if size < 4 * BLOCK:
        return wide @ wide.T
    lower = wide.new_empty(size, size)
    for start in range(0, size, BLOCK):
        stop = min(start + BLOCK, size)
        torch.mm(wide[start:stop], wide[:stop].T, out=lower[start:stop, :stop])
        lower[:start, start:stop] = lower[start:stop, :start].T
    return lower


def zero_rows(matrix: Tensor) -> Tensor | None:
    """Return the mask of rows that are not all zero, or None if (nearly) all are not.

    An embedding's update has few of them; 32 rows from all over it tell.
    """
    if matrix.shape[0] < SPARSE or bool(matrix[_spread(matrix.T, 32)].any(1).all()):
        return None
    return matrix.any(1)


def _prepare(matrix: Tensor) -> _Prepared | None:
    low, high = torch.aminmax(matrix) if matrix.numel() else (matrix.sum(), matrix.sum())
    largest = max(-float(low), float(high))
    if not math.isfinite(largest):
        raise ValueError("the update is not finite")
    if largest == 0.0:
        return None
    exponent = ordinary_exponent(largest)
    matrix = times_power_of_two(matrix, -exponent) if exponent else matrix
    rows = zero_rows(matrix)
    return _Prepared(matrix if rows is None else matrix[rows], exponent, rows)


def energy_of(matrix: Tensor) -> float:
    """Return the sum of squares, of rows in the matrix's precision and of their sums in float64."""
    return float(torch.linalg.vector_norm(matrix, dim=1).double().square().sum())


def _directions(symmetric: Tensor) -> tuple[Tensor, np.ndarray]:
    """Eigenvectors and eigenvalues (float64, on the CPU, where small sums are cheapest), both falling."""
    try:
        values, vectors = torch.linalg.eigh(symmetric)
    except torch.linalg.LinAlgError:  # CUDA's may give up on repeated eigenvalues; LAPACK's does not
        values, vectors = torch.linalg.eigh(symmetric.double().cpu())
        vectors = vectors.to(symmetric)
    return vectors.flip(1), np.maximum(values.cpu().numpy()[::-1].astype(np.float64), 0)


def _all(symmetric: Tensor, wide: Tensor, threshold: float) -> tuple[Tensor, float]:
    """The K directions and their energy."""
    basis, energies = _directions(symmetric)
    cumulative = energies.cumsum() / energies.sum()
    rank = _smallest_rank(cumulative, threshold)
    if _undecided(cumulative, threshold):
        return _refined(wide, basis[:, : rank + 2], threshold)
    return basis[:, :rank], float(cumulative[rank - 1])


def _few(symmetric: Tensor, wide: Tensor, threshold: float) -> tuple[Tensor, float] | None:
    """The K directions and their energy where a narrow block holds them provably; None where it does not."""
    size, total = symmetric.shape[0], float(symmetric.diagonal().sum(dtype=torch.float64))
    for width in sorted({_rounded(share * size) for share in WIDTHS}):
        block = symmetric[:, _spread(symmetric, width)]
        for sweep in range(SWEEPS):
            block = torch.linalg.qr(block).Q
            image = symmetric @ block
            if sweep:
                turn, values = _directions(block.T @ image)
                cumulative = values.cumsum() / total
                if 1 - cumulative[-1] > HOPELESS * (1 - threshold):
                    return None
                if cumulative[int(0.8 * width)] <= threshold:
                    break
                rank = _smallest_rank(cumulative, threshold)
                kept = turn[:, :rank]
                basis = block @ kept
                if _proven(symmetric, basis, image @ kept, values, threshold * total):
                    if _undecided(cumulative, threshold):
                        return _refined(wide, block @ turn[:, : rank + 2], threshold)
                    return basis, float(cumulative[rank - 1])
            block = image
    return None


def _rounded(width: float) -> int:
    return math.ceil(width / LANES) * LANES


def _refined(wide: Tensor, block: Tensor, threshold: float) -> tuple[Tensor, float]:
    """Decide in float64 how many of the block's directions are needed (Ritz values err by its error squared)."""
    block = torch.linalg.qr(block.double()).Q
    projected = block.T @ wide.double()
    turn, energies = _directions(projected @ projected.T)
    cumulative = energies.cumsum() / float(wide.double().square().sum())
    rank = _smallest_rank(cumulative, threshold)
    return (block @ turn[:, :rank]).to(wide.dtype), float(cumulative[rank - 1])


def _proven(symmetric: Tensor, basis: Tensor, image: Tensor, values: np.ndarray, wanted: float) -> bool:
    """Whether no K - 1 directions hold the wanted energy, given K Ritz pairs and image = symmetric @ basis.

    With mu above every eigenvalue of the rest, eigenvalue j is at most 2 e^2 / (g + sqrt(g^2 + 4 e^2)) above Ritz
    value j, g = values_j - mu, e = |image - basis values| (Li and Li 2005, A note on eigenvalues of perturbed
    Hermitian matrices).
    """
    rank = basis.shape[1]
    ritz = torch.from_numpy(values[:rank]).to(basis)
    error = float(torch.linalg.matrix_norm(image - basis * ritz))
    mu = float(values[rank - 1])
    gaps = values[: rank - 1] - mu
    above = (2 * error**2 / np.maximum(gaps + np.sqrt(gaps**2 + 4 * error**2), 1e-300)).sum()
    if values[: rank - 1].sum() + above >= wanted * (1 + BOUNDARY):
        return False
    # mu - (1 - B B^T) S (1 - B B^T), with image = S B and B^T image = ritz
    half = image - basis * (ritz / 2)
    rest = torch.addmm(symmetric, torch.cat([half, basis], 1), torch.cat([basis, half], 1).T, beta=-1)
    rest.diagonal().add_(mu)
    return int(torch.linalg.cholesky_ex(rest).info) == 0


def _spread(matrix: Tensor, count: int) -> Tensor:
    """Places of `count` columns from all over the matrix: its own columns are as good a start as random ones."""
    return torch.arange(count, device=matrix.device) * matrix.shape[1] // count


def _smallest_rank(cumulative: np.ndarray, threshold: float) -> int:
    above = int(cumulative.searchsorted(threshold, side="right"))
    return min(above + 1, cumulative.size) if threshold < 1 else cumulative.size


def _undecided(cumulative: np.ndarray, threshold: float) -> bool:
    return bool((np.abs(cumulative[:-1] - threshold) < BOUNDARY).any())


def _nothing(matrix: Tensor) -> Factors:
    return Factors(matrix.new_zeros(matrix.shape[0], 0), matrix.new_zeros(0, matrix.shape[1]), 1.0)


def _assemble(matrix: Tensor, prepared: _Prepared, basis: Tensor, projected: Tensor, energy: float) -> Factors:
    """Factors of the whole matrix from K directions of its short side and what it is in them: s moves to the left."""
    if prepared.matrix.shape[0] > prepared.matrix.shape[1]:
        left, right = projected.T, basis.T
    else:
        sigma = torch.linalg.vector_norm(projected, dim=1)
        left, right = basis * sigma, projected / sigma.clamp_min(torch.finfo(sigma.dtype).tiny)[:, None]
    if prepared.exponent:
        left = times_power_of_two(left, prepared.exponent)
    if prepared.rows is not None:
        left, kept = left.new_zeros(matrix.shape[0], left.shape[1]), left
        left[prepared.rows] = kept
    return Factors(left.contiguous(), right.contiguous(), energy)
