"""Speed and ranks of the exact and the fast factorisation against numpy's and torch's SVD, on recorded updates."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from benchmarks.recorded import cpu_seconds, geometric_mean, matrices, smallest_rank
from fedkd_mpi.linalg.low_rank import LARGE, Factors, exact, exact_each, fast


def run(arguments: list[str]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Return speed-ups (one thread, medians of paired CPU times) and the excess of ranks over a float64 SVD."""
    torch.set_num_threads(1)
    threadpool_limits(1)
    rows: list[dict[str, Any]] = []
    for recorded in matrices():
        matrix, before = recorded.matrix, recorded.before.reshape(recorded.matrix.shape)
        array = matrix.numpy()
        for threshold in (0.95, 0.98):
            start = exact(before, threshold).left
            exact_rank, fast_rank = exact(matrix, threshold).rank, fast(matrix, threshold, start).rank
            numpy_seconds, torch_seconds, exact_seconds, fast_seconds = cpu_seconds(
                partial(np.linalg.svd, array, full_matrices=False),
                partial(torch.linalg.svd, matrix, full_matrices=False),
                partial(exact, matrix, threshold),
                partial(fast, matrix, threshold, start),
            )
            rank = smallest_rank(matrix, threshold)
            rows.append(
                {
                    "student": recorded.student,
                    "layer": recorded.layer,
                    "matrix": "x".join(map(str, matrix.shape)),
                    "T": threshold,
                    "K": rank,
                    "exact K": exact_rank,
                    "fast K": fast_rank,
                    "numpy ms": 1e3 * numpy_seconds,
                    "exact x numpy": numpy_seconds / exact_seconds,
                    "exact x torch": torch_seconds / exact_seconds,
                    "fast x numpy": numpy_seconds / fast_seconds,
                }
            )
    speed = [row["exact x numpy"] for row in rows]
    claims = {
        "exact_vs_numpy": geometric_mean(speed),
        "exact_vs_numpy_min": min(speed),
        "exact_vs_torch": geometric_mean([row["exact x torch"] for row in rows]),
        "exact_rank_differences": float(sum(row["exact K"] != row["K"] for row in rows)),
        "fast_vs_numpy": geometric_mean([row["fast x numpy"] for row in rows]),
        "fast_rank_excess": float(np.mean([row["fast K"] / row["K"] - 1 for row in rows])),
        "stacked_vs_one_by_one": geometric_mean(list(_stacked())),
    }
    return claims, rows


def _one_by_one(group: list[torch.Tensor]) -> list[Factors]:
    return [exact(matrix, 0.95) for matrix in group]


def _stacked() -> Iterator[float]:
    """Yield the speed-up of factorising the matrices of one shape at once over one by one."""
    alike: dict[tuple[str, torch.Size], list[torch.Tensor]] = {}
    for recorded in matrices():
        alike.setdefault((recorded.student, recorded.matrix.shape), []).append(recorded.matrix)
    for group in alike.values():
        if len(group) > 1 and min(group[0].shape) < LARGE:
            single, batched = cpu_seconds(
                partial(_one_by_one, group),
                partial(exact_each, group, 0.95),
            )
            yield single / batched
