"""Uniform quantisation that keeps a given share of a matrix's energy with few bits: low-rank factors or the matrix.

This is reverse water-filling for a product of factors. An error e in s_i v_i or in s_i u_i is an error e of the matrix
for every i. So one uniform step for all singular directions distributes the error budget optimally, and directions with
less energy than their quantisation noise are omitted. The right factor is quantised first; the left factor is then
fitted to it by least squares and quantised. (Cover and Thomas, Elements of Information Theory, 10.3.3, applied to the
factors of Wu et al. 2022.)
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial
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
ROUND_UP = 0.4  # fraction from which a magnitude is rounded up; below 1/2, because small symbols take fewer bits
LEFT_UNUSED = 0.02  # share of the error budget that may remain unused
FINE = 1e-3  # error budgets below this share of the energy are computed in float64
MARGIN = 5e-4  # share of the error budget that is reserved for rounding errors
TRIALS = 24  # steps tried per search at most
CHECKS = 5  # searches per matrix at most, each with a higher threshold
ROWS = 512  # rows of a matrix that are converted to float64 at a time


class Plan(NamedTuple):
    """Quantisation step, number of directions and estimated cost in bits, computed from a spectrum."""

    step: float
    rank: int
    bits: float


class Integers(NamedTuple):
    """A quantised matrix: integers in float tensors, the step, and the share of the energy that they keep.

    Two factors left [K, n] and right [K, m] represent step * (left / |right|).T @ right, where |right| are the norms of
    the rows. One matrix represents step * matrix.
    """

    matrices: tuple[Tensor, ...]
    step: float
    energy: float


def plan(energies: Tensor, rows: int, columns: int, threshold: float) -> Plan:
    """Return the plan for a rows x columns matrix.

    `energies` are its squared singular values (float64, in descending order), `threshold` is the share to keep.
    """
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
    """Return a threshold per matrix such that one common step loses at most (1 - threshold) * total over all matrices.

    `spectra` contains for each matrix the squared singular values (float64, in descending order) and rows + columns. A
    threshold of 0 means that nothing of the matrix is sent.
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
    """Return factors with energy > threshold, or None if no step is found.

    The search ends when at most LEFT_UNUSED of the error budget remains. `wide` is float32 [n, m] with n <= m and
    ordinary scale, `basis` [n, k] are its first left singular vectors and `energies` its squared singular values in
    float64.
    """
    exact = torch.float64 if 1 - threshold < FINE else wide.dtype
    wide, basis = wide.to(exact), basis.to(exact)
    total = energy_of(wide)
    known = basis.shape[1]
    for rank in dict.fromkeys((min(planned.rank, known), min(2 * planned.rank, known), known)):
        rows = basis[:, :rank].T @ wide
        lost = max(total - float(energies[:rank].sum()), 0.0) / total
        found = _search(partial(_factors_at, wide, rows, total=total), planned.step, threshold, lost)
        if found is not None:
            return found
    return None


def dense(matrix: Tensor, threshold: float) -> Integers | None:
    """Return the quantised matrix itself with energy > threshold, or None if no step is found."""
    matrix = matrix.to(torch.float64 if 1 - threshold < FINE else matrix.dtype)
    total = energy_of(matrix)
    start = math.sqrt(12 * (1 - threshold) * total / matrix.numel())
    return _search(lambda step: _dense_at(matrix, step, total), start, threshold, 0.0)


def product(left: Tensor, right: Tensor, step: float) -> Tensor:
    """Return the float32 matrix [n, m] that integer factors represent."""
    scale = step / right.double().square().sum(1).clamp_min(1).sqrt()
    return (left.float() * scale.float()[:, None]).T @ right.float()


def checked(wide: Tensor, find: Callable[[float], Integers | None], exponent: int, threshold: float) -> Integers | None:
    """Return find(threshold) with the energy of the receiver's matrix, computed in float64; None if it is too low.

    find() may compute in float32 and end below the threshold; it is then called with a higher threshold. `exponent` is
    the power of two that was removed from `wide`.
    """
    aim = threshold
    for _ in range(CHECKS):
        found = find(aim) if aim < 1 else None
        if found is None:
            return None
        step = float(np.float32(found.step))  # the value that is sent
        back = there_and_back(rebuilt(found.matrices, step), exponent)
        found = found._replace(step=step, energy=kept(wide, back))
        if found.energy > threshold:
            return found
        aim += 1.5 * (threshold - found.energy) + 1e-3 * (1 - aim) if math.isfinite(found.energy) else 1.0
    return None


def rebuilt(matrices: Sequence[Tensor], step: float) -> Tensor:
    """Return the float32 matrix that an integer matrix or two integer factors represent."""
    matrices = canonicals(matrix.float() for matrix in matrices)
    return product(matrices[0], matrices[1], step) if len(matrices) == 2 else matrices[0] * step


def kept(original: Tensor, decoded: Tensor) -> float:
    """Return 1 - |original - decoded|^2 / |original|^2, computed in float64 for ROWS rows at a time."""
    lost = total = 0.0
    for a, b in zip(original.split(ROWS), decoded.split(ROWS), strict=True):
        exact = a.double()
        total += float(exact.square().sum())
        lost += float((exact - b.double()).square_().sum())
    return 1 - lost / total if total else 1.0


def _search(at: Callable[[float], Integers | None], start: float, threshold: float, lost: float) -> Integers | None:
    """Return the result of at(step) for the largest acceptable step, or None.

    The error is `lost`, which is independent of the step, plus noise in proportion to the square of the step. The
    search fits this proportion, with bisection as a fallback.
    """
    budget, step, low, high, best = 1 - threshold, start, 0.0, math.inf, None
    for _ in range(TRIALS):
        found = at(step)
        if found is None:  # symbols are too large, and a smaller step makes them larger
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
    """Return the factors for a step; their error is computed from k x k matrices."""
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
