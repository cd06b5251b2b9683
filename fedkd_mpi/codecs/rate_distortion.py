"""Integers on one step that keep a given share of a matrix's energy with few bits: as low-rank factors, or dense.

Reverse water-filling for a product of factors: an error e in s_i v_i, or in s_i u_i, is an error e of the matrix
whatever i is, so one uniform step for all singular directions spends the error budget evenly, and directions whose
energy is less than their noise are left out. The right factor is quantised first; the left one is fitted to it by
least squares, then quantised. (Cover and Thomas, Elements of Information Theory, 10.3.3, applied to the factors of Wu
et al. 2022.)
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedkd_mpi.codecs.symbols import LARGEST
from fedkd_mpi.linalg.layout import canonicals
from fedkd_mpi.linalg.scaling import there_and_back
from fedkd_mpi.linalg.spectrum import energy_of, gram

# Tuned on client 0 of the recorded updates (benchmarks/record_updates.py); docs/codecs.md has the figures of client 1.
WORTH = 0.2  # a direction is kept if its energy exceeds this times (rows + columns) * step^2
ROUND_UP = 0.4  # fraction from which a magnitude is rounded up: below 1/2, as small symbols are cheaper
LEFT_UNUSED = 0.02  # of the error budget
FINE = 1e-3  # an error budget below this share of the energy is computed in float64
MARGIN = 5e-4  # of the error budget, kept for rounding
TRIALS = 24
CHECKS = 5  # searches, each for a higher threshold, before a matrix goes another way
ROWS = 512  # of a matrix that are looked at in float64 at a time


class Plan(NamedTuple):
    """Step and number of directions that a spectrum calls for, and the estimated cost in bits."""

    step: float
    rank: int
    bits: float


class Integers(NamedTuple):
    """What is sent: float tensors of integers, the step, and the share of the energy they keep.

    Two factors, left [K, n] and right [K, m], stand for step * (left / |right|).T @ right with |right| the norms of
    the rows; one matrix stands for step * matrix.
    """

    matrices: tuple[Tensor, ...]
    step: float
    energy: float


def plan(energies: Tensor, rows: int, columns: int, threshold: float) -> Plan:
    """Return the plan for a rows x columns matrix with these squared singular values (float64, falling)."""
    cumulative, rising, entries = energies.cumsum(0).tolist(), energies.flip(0).tolist(), rows + columns
    total = cumulative[-1]

    def rank_at(step2: float) -> int:
        return max(len(rising) - bisect_right(rising, WORTH * entries * step2), 1)

    low, high = -60.0, 2.0  # log2 of step / norm
    for _ in range(40):
        middle = (low + high) / 2
        step2 = total * 4.0**middle
        rank = rank_at(step2)
        error = total - cumulative[rank - 1] + rank * entries * step2 / 12
        low, high = (low, middle) if error > (1 - threshold) * total else (middle, high)
    step2 = total * 4.0**low
    rank = rank_at(step2)
    rate = 0.5 * torch.log2(12 * energies[:rank] / (entries * step2) + 1)
    return Plan(math.sqrt(step2), rank, float(rate.sum()) * entries)


def share_out(spectra: Sequence[tuple[Tensor, int]], total: float, threshold: float) -> list[float]:
    """Return a threshold per matrix so that one common step loses at most (1 - threshold) * total in all of them.

    spectra holds squared singular values (float64, falling) and rows + columns of each; 0 = nothing of the matrix is
    sent.
    """

    def lost(step2: float) -> list[float]:
        ranks = [int((energies > WORTH * entries * step2).sum()) for energies, entries in spectra]
        noise = [rank * entries * step2 / 12 for rank, (_, entries) in zip(ranks, spectra, strict=True)]
        return [float(e[r:].sum()) + n for r, n, (e, _) in zip(ranks, noise, spectra, strict=True)]

    low, high = -60.0, 2.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if sum(lost(total * 4.0**middle)) > (1 - threshold) * total else (middle, high)
    parts = zip(lost(total * 4.0**low), spectra, strict=True)
    return [max(1 - part / max(float(energies.sum()), 1e-300), 0.0) for part, (energies, _) in parts]


def factors(wide: Tensor, basis: Tensor, energies: Tensor, planned: Plan, threshold: float) -> Integers | None:
    """Return factors with energy > threshold, at most LEFT_UNUSED of the error budget unspent; None if no step does.

    wide is float32 [n, m] with n <= m and ordinary scale, basis [n, k] its first left singular vectors, energies its
    squared singular values (float64).
    """
    exact = torch.float64 if 1 - threshold < FINE else wide.dtype
    wide, basis = wide.to(exact), basis.to(exact)
    total = energy_of(wide)
    known = basis.shape[1]
    for rank in dict.fromkeys((min(planned.rank, known), min(2 * planned.rank, known), known)):
        rows = basis[:, :rank].T @ wide
        lost = max(total - float(energies[:rank].sum()), 0.0) / total
        found = _search(lambda step, rows=rows: _factors_at(wide, rows, step, total), planned.step, threshold, lost)
        if found is not None:
            return found
    return None


def dense(matrix: Tensor, threshold: float) -> Integers | None:
    """Return the matrix itself on one step, as factors() does."""
    matrix = matrix.to(torch.float64 if 1 - threshold < FINE else matrix.dtype)
    total = energy_of(matrix)
    start = math.sqrt(12 * (1 - threshold) * total / matrix.numel())
    return _search(lambda step: _dense_at(matrix, step, total), start, threshold, 0.0)


def product(left: Tensor, right: Tensor, step: float) -> Tensor:
    """Return the float32 matrix [n, m] that integer factors stand for."""
    scale = step / right.double().square().sum(1).clamp_min(1).sqrt()
    return (left.float() * scale.float()[:, None]).T @ right.float()


def checked(wide: Tensor, find: Callable[[float], Integers | None], exponent: int, threshold: float) -> Integers | None:
    """Return what find(threshold) gives, with the energy of what a receiver makes of it, in float64; None if too low.

    find() works in float32 where it can. Where that ended below the threshold, it is asked for as much more.
    """
    aim = threshold
    for _ in range(CHECKS):
        found = find(aim) if aim < 1 else None
        if found is None:
            return None
        step = float(np.float32(found.step))  # as it travels
        back = there_and_back(rebuilt(found.matrices, step), exponent)
        found = found._replace(step=step, energy=kept(wide, back))
        if found.energy > threshold:
            return found
        aim += 1.5 * (threshold - found.energy) + 1e-3 * (1 - aim) if math.isfinite(found.energy) else 1.0
    return None


def rebuilt(matrices: Sequence[Tensor], step: float) -> Tensor:
    """Return the float32 matrix that integers, or integer factors, stand for."""
    matrices = canonicals(matrix.float() for matrix in matrices)
    return product(*matrices, step) if len(matrices) == 2 else matrices[0] * step


def kept(original: Tensor, decoded: Tensor) -> float:
    """Return 1 - |original - decoded|^2 / |original|^2 in float64, a part of the rows at a time."""
    lost = total = 0.0
    for a, b in zip(original.split(ROWS), decoded.split(ROWS), strict=True):
        exact = a.double()
        total += float(exact.square().sum())
        lost += float((exact - b.double()).square_().sum())
    return 1 - lost / total if total else 1.0


def _search(at: Callable[[float], Integers | None], start: float, threshold: float, lost: float) -> Integers | None:
    """Find the step by secant on the noise, which grows with the step's square, above what is lost at any step."""
    budget, step, low, high, best = 1 - threshold, start, 0.0, math.inf, None
    for _ in range(TRIALS):
        found = at(step)
        if found is None:  # symbols too large: no smaller step will do
            return best
        error = 1 - found.energy
        if error <= (1 - MARGIN) * budget:
            best, low = found, step
            if error >= (1 - LEFT_UNUSED) * budget:
                break
        else:
            high = step
        target = (1 - LEFT_UNUSED / 2) * budget - lost
        guess = step * math.sqrt(target / (error - lost)) if target > 0 and error > lost else 0.0
        if not low < guess < high:
            guess = math.sqrt(low * high) if low and high < math.inf else step * (0.6 if low == 0 else 1.6)
        if (high < math.inf and low > 0.999 * high) or guess < start / 64:
            break
        step = guess
    return best


def _factors_at(wide: Tensor, rows: Tensor, step: float, total: float) -> Integers | None:
    """The factors at a step, their error from k x k matrices alone."""
    right = _round(rows / step)
    right = right[right.any(1)]
    if right.shape[0] == 0:
        return Integers((right.new_zeros(0, wide.shape[0]), right), step, 0.0)
    unit = right / right.norm(dim=1, keepdim=True)
    overlap, onto = gram(unit), unit @ wide.T
    lower, failed = torch.linalg.cholesky_ex(overlap)
    left = _round((onto if failed else torch.cholesky_solve(onto, lower)) / step)
    if max(left.abs().max(), right.abs().max()) > LARGEST:
        return None
    kept = left * step
    error = total - 2 * float((onto * kept).sum(dtype=torch.float64))
    error += float(((kept @ kept.T).double() * overlap.double()).sum())
    return Integers((left, right), step, 1 - error / total)


def _dense_at(matrix: Tensor, step: float, total: float) -> Integers | None:
    rounded = _round(matrix / step)
    if rounded.abs().max() > LARGEST:
        return None
    return Integers((rounded,), step, 1 - float((matrix - rounded * step).square().sum(dtype=torch.float64)) / total)


def _round(values: Tensor) -> Tensor:
    return torch.trunc(values + torch.copysign(values.new_tensor(ROUND_UP), values))
