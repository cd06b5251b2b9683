"""Low-rank factorisation by energy threshold, as the codecs use it: of smallest rank K, or slightly above in less time.

The Gram matrix of the short side is accurate enough for the thresholds in use (T <= 0.999) if the scale is ordinary. So
a power of two is removed first, and a cumulative energy close to T is decided in float64. Unlike gesdd, eigh of a
symmetric matrix always converges. If few directions contain the energy, they are found without eigh, with a proof that
K is the smallest rank (linalg/subspace.py, and linalg/batched.py for many small matrices at once).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedkd_mpi.linalg import batched
from fedkd_mpi.linalg.layout import canonical, canonicals
from fedkd_mpi.linalg.scaling import exponent_of, ordinary_exponent, times_power_of_two
from fedkd_mpi.linalg.spectrum import (
    BOUNDARY,
    LANES,
    eigenvectors,
    energy_of,
    gram,
    rounded,
    smallest_rank,
    spread,
    undecided,
)
from fedkd_mpi.linalg.subspace import HOPELESS, WIDTHS, few, refined, steep

LARGE = 128  # short side from which an eigendecomposition costs more than an attempt without one
WARM = 48  # the same with a known start
SPARSE = 192  # rows or columns from which a search for zero rows or columns is worthwhile
NARROW = 0.15  # share of the short side up to which a block of directions is multiplied by the matrix itself
FAR = 90  # exponent from which factors may exceed float32's range, so that their energy is computed from them
WIDE = 0.4  # share of the short side above which a start is not useful


class Factors(NamedTuple):
    """A factorisation matrix [P, Q] ~ left @ right; `numbers` contains both factors, flat.

    `energy` is the kept share of the sum of squared singular values. It is above the threshold, except for matrices of
    such a scale that the factors exceed float32's range.
    """

    shape: torch.Size
    numbers: Tensor
    energy: float

    @property
    def rank(self) -> int:
        """K, the number of singular directions kept."""
        return self.numbers.numel() // sum(self.shape)

    @property
    def left(self) -> Tensor:
        """U diag(s) [P, K]."""
        return self.numbers[: self.shape[0] * self.rank].view(self.shape[0], self.rank)

    @property
    def right(self) -> Tensor:
        """V [K, Q]."""
        return self.numbers[self.shape[0] * self.rank :].view(self.rank, self.shape[1])


class _Prepared(NamedTuple):
    """A matrix scaled by 2^-exponent, without zero rows and zero columns."""

    matrix: Tensor
    exponent: int
    rows: Tensor | None  # mask of the kept rows, None if all are kept
    columns: Tensor | None  # likewise

    @property
    def wide(self) -> Tensor:
        return self.matrix if self.matrix.shape[0] <= self.matrix.shape[1] else self.matrix.T


def exact(matrix: Tensor, threshold: float) -> Factors:
    """Return the factors of the smallest rank K with sum_{j<=K} s_j^2 / sum_j s_j^2 > threshold.

    The matrix is float32 [P, Q]. K may be the full rank; it is 0 only for an all-zero matrix (Wu et al. 2022, Methods).
    Raises ValueError if the matrix is not finite, for which LAPACK might fail or never return.
    """
    return exact_each([matrix], threshold)[0]


def exact_each(matrices: Sequence[Tensor], threshold: float) -> list[Factors]:
    """Return exact() of every matrix; matrices with a short side below LARGE are factorised at once.

    A GPU decomposes a stack in about the time of one matrix. A CPU saves call overhead; the bits of a result do not
    depend on the other matrices or on the memory layout. Raises ValueError as exact() does.
    """
    matrices = canonicals(matrices)
    found: dict[int, Factors] = {}
    plain = [index for index, matrix in enumerate(matrices) if _is_small(matrix)]
    for index, small in zip(plain, batched.factorize([matrices[index] for index in plain], threshold), strict=True):
        if small is not None:
            found[index] = Factors(matrices[index].shape, *small)
    if rest := [index for index in range(len(matrices)) if index not in found]:
        found.update(zip(rest, _others([matrices[index] for index in rest], threshold), strict=True))
    return [found[index] for index in range(len(matrices))]


def _is_small(matrix: Tensor) -> bool:
    rows, columns = matrix.shape
    return rows < SPARSE and min(rows, columns) < LARGE and not matrix.is_cuda


def _others(matrices: Sequence[Tensor], threshold: float) -> Iterator[Factors]:
    """Yield the factors of any matrices; a GPU decomposes matrices of the same shape, or transposed, in one call."""
    prepared = [_prepare(matrix) for matrix in matrices]
    alike: dict[torch.Size, dict[int, Tensor]] = {}
    for index, part in enumerate(prepared):
        if part and part.wide.is_cuda and part.wide.shape[0] < LARGE:
            alike.setdefault(part.wide.shape, {})[index] = part.wide
    spectra: dict[int, tuple[Tensor, np.ndarray, np.ndarray]] = {}
    for group in alike.values():
        if len(group) > 1:
            stack = torch.stack(list(group.values()))
            bases, cumulative, near = _spectrum(stack @ stack.mT, threshold)
            spectra.update((index, (bases[at], cumulative[at], near[at])) for at, index in enumerate(group))
    for index, (matrix, part) in enumerate(zip(matrices, prepared, strict=True)):
        if part is None:
            yield _nothing(matrix)
            continue
        if index in spectra:
            basis, energy = _cut(part.wide, *spectra[index], threshold)
        else:
            basis, energy = _found(part.wide, threshold)
        yield _assemble(matrix, part, basis, basis.T @ part.wide, energy)


def fast(matrix: Tensor, threshold: float, start: Tensor | None) -> Factors:
    """Return factors that keep more than the threshold's share of the energy, of the smallest rank or slightly above.

    `start` is `left` of the layer's last factors. Its directions are improved by two steps of power iteration (Vogels
    et al. 2019), with the Gram matrix if there are many. The result is that of exact() if there is no start, if the
    start is too wide, or if the energy is not reached. Raises ValueError as exact() does.
    """
    matrix, short = canonical(matrix), min(matrix.shape)
    if start is None or not start.numel():
        return exact(matrix, threshold)
    start = canonical(start)
    width = rounded(1.2 * start.shape[1] + 4)
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
    block = torch.cat([start, wide[:, spread(wide, width - start.shape[1])]], 1)
    for _ in range(2):
        block = torch.linalg.qr(wide @ (wide.T @ block) if symmetric is None else symmetric @ block).Q
    projected = block.T @ wide
    turn, energies = eigenvectors(projected @ projected.T)
    cumulative = energies.cumsum() / energy_of(prepared.matrix)
    if not cumulative[-1] > threshold + BOUNDARY:
        return exact(matrix, threshold)
    rank = smallest_rank(cumulative, threshold + BOUNDARY)
    turn = turn[:, :rank]
    return _assemble(matrix, prepared, block @ turn, turn.T @ projected, float(cumulative[rank - 1]))


def directions(wide: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Return left singular vectors [n, k] and squared singular values (float64 [n], on the CPU), in descending order.

    `wide` is float32 [n, m] with n <= m, of ordinary scale. k may be less than n if far fewer directions contain the
    threshold's share of the energy. The vectors are then approximate, and the values after the k-th are zero except the
    last, which contains the rest of the energy.
    """
    symmetric = gram(wide)
    size = wide.shape[0]
    for width in sorted({rounded(share * size) for share in WIDTHS}) if size >= LARGE and threshold < 1 else ():
        block = symmetric[:, spread(symmetric, width)]
        for _ in range(2):
            block = symmetric @ torch.linalg.qr(block).Q
        block = torch.linalg.qr(block).Q
        turn, values = eigenvectors(block.T @ (symmetric @ block))
        total = float(symmetric.diagonal().sum(dtype=torch.float64))
        if values[: width // 2].sum() > threshold * total:
            rest = np.zeros(size - width)
            rest[-1] = max(total - float(values.sum()), 0.0)
            return block @ turn, torch.from_numpy(np.concatenate([values, rest]))
        if total - values.sum() > HOPELESS * (1 - threshold) * total:
            break
    basis, values = eigenvectors(symmetric)
    return basis, torch.from_numpy(values)


def zero_rows(matrix: Tensor) -> Tensor | None:
    """Return the mask of the non-zero rows, or None if there are (nearly) no zero rows.

    The update of an embedding has few non-zero rows. A sample of 32 rows decides.
    """
    if matrix.shape[0] < SPARSE or bool(matrix[spread(matrix.T, 32)].any(1).all()):
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
    matrix = matrix if rows is None else matrix[rows]
    columns = _zero_columns(matrix)
    return _Prepared(matrix if columns is None else matrix[:, columns], exponent, rows, columns)


def _zero_columns(matrix: Tensor) -> Tensor | None:
    """Return the mask of the non-zero columns, as zero_rows() does; a sample decides, and only with enough rows."""
    if min(matrix.shape) < SPARSE or bool(matrix[:32, :: matrix.shape[1] // 32].any(0).all()):
        return None
    return matrix.any(0)


def _found(wide: Tensor, threshold: float) -> tuple[Tensor, float]:
    """Return the K directions and their energy, by the cheapest method that proves K."""
    worth_trying = wide.shape[0] >= LARGE and threshold < 1
    found, too_few = steep(wide, threshold) if worth_trying else (None, 0)
    if found:
        return found
    symmetric = gram(wide)
    if worth_trying and (found := few(symmetric, wide, threshold, too_few)):
        return found
    return _cut(wide, *_spectrum(symmetric, threshold), threshold)


def _spectrum(symmetric: Tensor, threshold: float) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Return all directions, cumulative energy shares, and whether a share is close to T; also for stacks."""
    basis, energies = eigenvectors(symmetric)
    cumulative = energies.cumsum(-1) / energies.sum(-1, keepdims=True)
    return basis, cumulative, np.asarray(undecided(cumulative, threshold))


def _cut(
    wide: Tensor, basis: Tensor, cumulative: np.ndarray, close: np.ndarray, threshold: float
) -> tuple[Tensor, float]:
    """Return the first K of all directions and their energy; K is computed in float64 if a share is close to T."""
    rank = smallest_rank(cumulative, threshold)
    if close:
        return refined(wide, basis[:, : rank + 2], threshold)
    return basis[:, :rank], float(cumulative[rank - 1])


def _nothing(matrix: Tensor) -> Factors:
    return Factors(matrix.shape, matrix.new_zeros(0), 1.0)


def _assemble(matrix: Tensor, prepared: _Prepared, basis: Tensor, projected: Tensor, energy: float) -> Factors:
    """Return the factors of the whole matrix; the singular values are multiplied into the left factor.

    `basis` are K directions of the short side of the prepared matrix, `projected` is that matrix in this basis.
    """
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
    if prepared.columns is not None:
        right, kept = right.new_zeros(right.shape[0], matrix.shape[1]), right
        right[:, prepared.columns] = kept
    found = Factors(matrix.shape, torch.cat([left.reshape(-1), right.reshape(-1)]), energy)
    return found._replace(energy=kept_energy(matrix, found)) if abs(prepared.exponent) > FAR else found


def kept_energy(matrix: Tensor, factors: Factors) -> float:
    """Return the share of the matrix's energy that the product of its factors keeps, computed in float64."""
    lost = matrix.double() - (factors.left @ factors.right).double()
    return 1 - float(lost.square().sum() / matrix.double().square().sum())
