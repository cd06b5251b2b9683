"""Leading directions without an eigendecomposition: subspace iteration, and proofs that no smaller rank is sufficient.

Both methods end with K Ritz pairs of the Gram matrix S. The smallest rank is K if K - 1 directions provably contain
less than the threshold's share. Let mu be above every eigenvalue of S outside the K directions, g = value_j - mu, and e
the norm of the K residuals. Then eigenvalue j is at most 2 e^2 / (g + sqrt(g^2 + 4 e^2)) above Ritz value j (Li and Li
2005, A note on eigenvalues of perturbed Hermitian matrices). The methods differ in mu: steep() bounds the part outside
by its trace without forming S; few() forms S and tests mu with a Cholesky factorisation of mu - S.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fedkd_mpi.linalg.spectrum import BOUNDARY, eigenvectors, energy_of, rounded, smallest_rank, spread, undecided

WIDTHS = (0.04, 0.12)  # widths of the blocks that are tried on the Gram matrix, as shares of the short side
HOPELESS = 2.5  # if a block misses more than this many error budgets, the next block is not tried
SWEEPS = 4  # steps of subspace iteration at most
STEEP = (16, 32)  # directions per block in steep(), tried in this order
FLAT = (1.5, 3.0)  # error budgets missed by a first block: it is too narrow; so is the next block
NEAR = 16.0  # a first block must miss less than this many times the K-th value


def steep(wide: Tensor, threshold: float) -> tuple[tuple[Tensor, float] | None, int]:
    """Return K directions [n, K] of wide [n, m] and their energy if the spectrum is steep; else None.

    The spectrum is steep if the energy outside a narrow block is less than the K-th squared singular value, which is
    common for small K. The second result is a number of directions that probably contain too little energy; few()
    does not try it.
    """
    size, columns = wide.shape
    stored = wide if wide.is_contiguous() else wide.T
    total, too_few = energy_of(stored), 0
    for width in STEEP:
        # Sums of columns are nearly as good a start as random combinations and take one pass over the matrix.
        used = columns // width * width
        if stored is wide:
            block = wide[:, :used].reshape(size, -1, width).sum(1)
        else:
            block = stored[:used].reshape(-1, width, size).sum(0).T
        block = torch.linalg.qr(block).Q
        projected = block.T @ wide
        _, values = eigenvectors(projected @ projected.T)
        cumulative = values.cumsum() / total
        outside = (1 - cumulative[-1]) / (1 - threshold)
        if outside > FLAT[0]:
            too_few = width
            if outside > FLAT[1]:
                break
        elif (1 - cumulative[-1]) * total <= NEAR * values[smallest_rank(cumulative, threshold) - 1]:
            found = _iterated(wide, block, projected, threshold, total)
            if found:
                return found, too_few
    return None, too_few


def _iterated(
    wide: Tensor, block: Tensor, projected: Tensor, threshold: float, total: float
) -> tuple[Tensor, float] | None:
    """Iterate the block until K is proven; None if it cannot be proven."""
    width = block.shape[1]
    for _ in range(SWEEPS - 2):
        block = torch.linalg.qr(wide @ projected.T).Q
        projected = block.T @ wide
        turn, values = eigenvectors(projected @ projected.T)
        cumulative = values.cumsum() / total
        left = max(total - values.sum(), 0.0) + BOUNDARY * total
        rank = smallest_rank(cumulative, threshold)
        if cumulative[-1] <= threshold or left > values[max(rank - 2, 0)]:
            return None
        basis = block @ turn
        residuals = wide @ (projected.T @ turn) - basis * torch.from_numpy(values).to(basis)
        errors = torch.linalg.vector_norm(residuals, dim=0).double().square().cpu().numpy()
        following = values[rank] if rank < width else 0.0
        # The largest eigenvalue of [[following, e], [e, left]] bounds the eigenvalues of S outside the first K.
        mu = (following + left) / 2 + np.hypot((following - left) / 2, np.sqrt(errors[rank:].sum()))
        if _too_few(values[: rank - 1], mu, errors[:rank].sum(), threshold * total):
            if undecided(cumulative, threshold):
                return refined(wide, basis[:, : rank + 2], threshold)
            return basis[:, :rank], float(cumulative[rank - 1])
    return None


def few(symmetric: Tensor, wide: Tensor, threshold: float, too_few: int) -> tuple[Tensor, float] | None:
    """Return K directions and their energy if a narrow block provably contains them; else None.

    Blocks of at most `too_few` directions are not tried.
    """
    size, total = symmetric.shape[0], float(symmetric.diagonal().sum(dtype=torch.float64))
    for width in sorted({rounded(share * size) for share in WIDTHS}):
        if width <= too_few:
            continue
        block = symmetric[:, spread(symmetric, width)]
        for sweep in range(SWEEPS):
            block = torch.linalg.qr(block).Q
            image = symmetric @ block
            if sweep:
                turn, values = eigenvectors(block.T @ image)
                cumulative = values.cumsum() / total
                if 1 - cumulative[-1] > HOPELESS * (1 - threshold):
                    return None
                if cumulative[int(0.8 * width)] <= threshold:
                    break
                rank = smallest_rank(cumulative, threshold)
                kept = turn[:, :rank]
                basis = block @ kept
                if _proven(symmetric, basis, image @ kept, values, threshold * total):
                    if undecided(cumulative, threshold):
                        return refined(wide, block @ turn[:, : rank + 2], threshold)
                    return basis, float(cumulative[rank - 1])
            block = image
    return None


def refined(wide: Tensor, block: Tensor, threshold: float) -> tuple[Tensor, float]:
    """Return the smallest sufficient number of the block's directions, in order, and their energy, both in float64.

    The directions are orthonormal except for rounding; a Cholesky factor of their products makes them orthonormal in
    float64. Their energy has an error of the square of their own error. If it is too low, the directions are computed
    again in float64.
    """
    block, wide_ = block.double(), wide.double()
    lower = torch.linalg.cholesky(block.T @ block)
    projected = torch.linalg.solve_triangular(lower, block.T @ wide_, upper=False)
    energies = torch.linalg.vector_norm(projected, dim=1).square().cpu().numpy()
    cumulative = energies.cumsum() / float(torch.linalg.vector_norm(wide_).square())
    if not cumulative[-1] > threshold and block.shape[1] < wide.shape[0]:
        basis, energies = eigenvectors(wide_ @ wide_.T)
        rank = smallest_rank(cumulative := energies.cumsum() / energies.sum(), threshold)
        return basis[:, :rank].to(wide.dtype), float(cumulative[rank - 1])
    rank = smallest_rank(cumulative, threshold)
    basis = torch.linalg.solve_triangular(lower, block.T, upper=False)[:rank].T
    return basis.to(wide.dtype), float(cumulative[rank - 1])


def _proven(symmetric: Tensor, basis: Tensor, image: Tensor, values: np.ndarray, wanted: float) -> bool:
    """Whether no K - 1 directions contain the wanted energy, given K Ritz pairs and image = symmetric @ basis."""
    rank = basis.shape[1]
    ritz = torch.from_numpy(values[:rank]).to(basis)
    error = float(torch.linalg.matrix_norm(image - basis * ritz))
    mu = float(values[rank - 1])
    if not _too_few(values[: rank - 1], mu, error**2, wanted):
        return False
    # mu - (1 - B B^T) S (1 - B B^T), with image = S B and B^T image = ritz
    half = image - basis * (ritz / 2)
    rest = torch.addmm(symmetric, torch.cat([half, basis], 1), torch.cat([basis, half], 1).T, beta=-1)
    rest.diagonal().add_(mu)
    return int(torch.linalg.cholesky_ex(rest).info) == 0


def _too_few(values: np.ndarray, mu: float, squared_error: float, wanted: float) -> bool:
    """Whether the largest possible sum of the eigenvalues of these Ritz values is below the wanted energy.

    The last Ritz value must be above mu, otherwise the result is False.
    """
    gaps = values - mu
    if gaps.size and gaps[-1] < 0:
        return False
    above = (2 * squared_error / np.maximum(gaps + np.sqrt(gaps**2 + 4 * squared_error), 1e-300)).sum()
    return bool(values.sum() + above < wanted * (1 + BOUNDARY))
