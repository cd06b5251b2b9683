"""The energy-threshold low-rank factorisation the codecs stand on: Gram matrix on the short side and its eigenvectors.

Squaring costs no accuracy at the thresholds in use (T <= 0.999); scale does, so a power of two is taken out first, and
a cumulative energy near T is decided in float64. Unlike gesdd, eigh of a symmetric matrix does not fail to converge.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fedkd_mpi.wire import WireError

BOUNDARY = 1e-5  # a cumulative energy this close to T is decided in float64


class Factors(NamedTuple):
    """matrix ~ left @ right: left = U diag(s) [P, K], right = V [K, Q], energy = kept share of the squared s."""

    left: Tensor
    right: Tensor
    energy: float

    @property
    def rank(self) -> int:
        """K, the number of singular directions kept."""
        return self.right.shape[0]


def exact(matrix: Tensor, threshold: float) -> Factors:
    """Return the factors of the smallest rank K with sum_{j<=K} s_j^2 / sum_j s_j^2 > threshold.

    matrix is float32 [P, Q]; K may be full, and is 0 only for an all-zero matrix (Wu et al. 2022, Methods).
    Raises ValueError if the matrix is not finite: LAPACK would fail to converge, or not return at all.
    """
    largest = float(matrix.abs().max()) if matrix.numel() else 0.0
    if not math.isfinite(largest):
        raise ValueError("the matrix is not finite")
    if largest == 0.0:
        return Factors(matrix.new_zeros(matrix.shape[0], 0), matrix.new_zeros(0, matrix.shape[1]), 1.0)
    exponent = exponent_of(largest)
    wide = matrix.shape[0] <= matrix.shape[1]
    scaled = times_power_of_two(matrix if wide else matrix.T, -exponent)
    basis, cumulative = _directions(scaled)
    if _undecided(cumulative, threshold):
        basis, cumulative = _directions(scaled.double())
        basis = basis.to(matrix.dtype)
    rank = _smallest_rank(cumulative, threshold)
    basis = basis[:, :rank]
    projected = basis.T @ scaled
    sigma = projected.norm(dim=1)
    unit = projected / sigma.clamp_min(torch.finfo(sigma.dtype).tiny)[:, None]
    scale = times_power_of_two(sigma, exponent)
    left, right = (basis * scale, unit) if wide else (unit.T * scale, basis.T)
    return Factors(left.contiguous(), right.contiguous(), float(cumulative[rank - 1]))


def _directions(wide: Tensor) -> tuple[Tensor, Tensor]:
    """Left singular vectors by falling singular value, and the cumulative share of energy (float64, on the CPU)."""
    values, vectors = torch.linalg.eigh(wide @ wide.T)
    energies = values.double().clamp_min(0).flip(0)
    return vectors.flip(1), (energies.cumsum(0) / energies.sum()).cpu()


def _smallest_rank(cumulative: Tensor, threshold: float) -> int:
    above = int(torch.searchsorted(cumulative, threshold, right=True))
    return min(above + 1, cumulative.numel()) if threshold < 1 else cumulative.numel()


def _undecided(cumulative: Tensor, threshold: float) -> bool:
    return bool(((cumulative[:-1] - threshold).abs() < BOUNDARY).any())


def directions(wide: Tensor) -> tuple[Tensor, Tensor]:
    """Return left singular vectors [n, n] and squared singular values (float64 [n], on the CPU), both falling.

    wide is float32 [n, m], n <= m, of ordinary scale (exponent_of and times_power_of_two see to that).
    """
    values, vectors = torch.linalg.eigh(wide @ wide.T)
    return vectors.flip(1), values.double().clamp_min(0).flip(0).cpu()


def exponent_of(largest: float) -> int:
    """Return e with 2^(e-1) <= largest < 2^e."""
    return math.frexp(largest)[1]


def checked_exponent(exponent: int) -> int:
    """Return an exponent that came over the wire; raises WireError if no float32 has it."""
    if abs(exponent) > 160:
        raise WireError(f"impossible exponent {exponent}")
    return exponent


def times_power_of_two(tensor: Tensor, exponent: int) -> Tensor:
    """Return tensor * 2^exponent, exactly; 2^149, which a denormal tensor needs, is no float32, but each half is."""
    half = exponent // 2
    return tensor * 2.0**half * 2.0 ** (exponent - half)
