"""The coarsest low-rank integer factors of a matrix that keep a given share of its energy.

Reverse water-filling for a product of factors: an error e in s_i v_i, or in s_i u_i, is an error e of the matrix whatever i is,
so one uniform step for all singular directions spends the error budget evenly, and directions whose energy is less than their
noise are left out. The right factor is quantised first and the left one fitted to it by least squares, then quantised.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fedkd_mpi.codecs.symbols import LARGEST

# Tuned on client 0 of the recorded updates (docs/codecs.md); the figures there are of client 1.
WORTH = 0.2  # a direction is kept if its energy exceeds this times (rows + columns) * step^2
ROUND_UP = 0.4  # fraction from which a magnitude is rounded up: below 1/2, as small symbols are cheaper
LEFT_UNUSED = 0.02  # of the error budget
FINE = 1e-3  # an error budget below this share of the energy is computed in float64
MARGIN = 5e-4  # of the error budget, kept for rounding


class Plan(NamedTuple):
    """Step and number of directions that a spectrum calls for, and the estimated cost in bits."""

    step: float
    rank: int
    bits: float


class Quantized(NamedTuple):
    """matrix ~ step * (left / |right|).T @ right with integers left [K, n], right [K, m] (|right| = norm of each row)."""

    left: Tensor
    right: Tensor
    step: float
    energy: float


def plan(energies: Tensor, rows: int, columns: int, threshold: float) -> Plan:
    """Return the plan for a rows x columns matrix with these squared singular values (float64, falling)."""
    total, cumulative = float(energies.sum()), energies.cumsum(0)
    entries = rows + columns
    low, high = -60.0, 2.0  # log2 of step / norm; 40 halvings leave 1e-10
    for _ in range(40):
        middle = (low + high) / 2
        step2 = total * 4.0**middle
        rank = max(int((energies > WORTH * entries * step2).sum()), 1)
        error = total - float(cumulative[rank - 1]) + rank * entries * step2 / 12
        low, high = (low, middle) if error > (1 - threshold) * total else (middle, high)
    step2 = total * 4.0**low
    rank = max(int((energies > WORTH * entries * step2).sum()), 1)
    rate = 0.5 * torch.log2(12 * energies[:rank] / (entries * step2) + 1)
    return Plan(math.sqrt(step2), rank, float(rate.sum()) * entries)


def quantize(matrix: Tensor, basis: Tensor, energies: Tensor, planned: Plan, threshold: float) -> Quantized | None:
    """Return factors with energy >= threshold of which at most LEFT_UNUSED of the error budget is unspent.

    matrix is float32 [n, m] with n <= m and entries of at most 1, basis [n, >= rank] its left singular vectors, energies its
    squared singular values. None if no step reaches the threshold with symbols of 16 bits.
    """
    exact = torch.float64 if 1 - threshold < FINE else matrix.dtype
    matrix, basis = matrix.to(exact), basis.to(exact)
    total = float(matrix.square().sum(dtype=torch.float64))
    budget = (1 - threshold) * total
    rank, step = planned.rank, planned.step
    rows = basis[:, :rank].T @ matrix
    lost = max(total - float(energies[:rank].sum()), 0.0)
    best, low, high = None, 0.0, math.inf
    for _ in range(16):
        found, error = _at(matrix, rows, step, total)
        if found is None:
            return best
        used = error / budget
        if used <= 1 - MARGIN:
            best, low = found, step
            if used >= 1 - LEFT_UNUSED:
                break
        else:
            high = step
        # The noise grows with the step's square, the lost directions stay lost.
        noise = (1 - 0.5 * LEFT_UNUSED) * budget - lost
        guess = step * math.sqrt(noise / (error - lost)) if noise > 0 and error > lost else step / 2
        inside = low < guess < high
        step = (
            guess if inside else math.sqrt(low * high) if low and high < math.inf else step * (0.7 if low == 0 else 1.4)
        )
        if rank < energies.numel() and high < math.inf and high < 0.5 * planned.step:
            break
    return best


def dequantize(left: Tensor, right: Tensor, step: float) -> Tensor:
    """Return the float32 matrix [n, m] of integer factors."""
    scale = step / right.double().square().sum(1).clamp_min(1).sqrt()
    return (left.float() * scale.float()[:, None]).T @ right.float()


def round_dead(values: Tensor) -> Tensor:
    """Round to integers, towards zero below ROUND_UP."""
    return torch.trunc(values + torch.copysign(values.new_tensor(ROUND_UP), values))


def _at(matrix: Tensor, rows: Tensor, step: float, total: float) -> tuple[Quantized | None, float]:
    """The factors at a step and their squared error, from k x k matrices alone."""
    right = round_dead(rows / step)
    right = right[right.any(1)]
    if right.shape[0] == 0:
        return Quantized(right.new_zeros(0, matrix.shape[0]), right, step, 0.0), total
    unit = right / right.norm(dim=1, keepdim=True)
    overlap, onto = unit @ unit.T, unit @ matrix.T
    factor, failed = torch.linalg.cholesky_ex(overlap)
    fitted = onto if failed else torch.cholesky_solve(onto, factor)
    left = round_dead(fitted / step)
    if max(left.abs().max(), right.abs().max()) > LARGEST:
        return None, math.nan
    kept = left * step
    error = total - 2 * float((onto * kept).sum(dtype=torch.float64))
    error += float(((kept @ kept.T).double() * overlap.double()).sum())
    return Quantized(left, right, step, 1 - error / total), error
