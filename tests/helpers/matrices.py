"""Matrices with known spectra, and a float64 SVD as the independent truth."""

from __future__ import annotations

import numpy as np
import torch


def with_spectrum(sigma: np.ndarray, rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """Return a float32 [rows, columns] matrix with (nearly) these singular values and random directions."""
    rng = np.random.default_rng(seed)
    left = np.linalg.qr(rng.standard_normal((rows, len(sigma))))[0]
    right = np.linalg.qr(rng.standard_normal((columns, len(sigma))))[0]
    return torch.from_numpy(((left * sigma) @ right.T).astype(np.float32))


def random(rows: int, columns: int, scale: float = 1.0, seed: int = 0) -> torch.Tensor:
    """Return a Gaussian float32 matrix of this scale."""
    return torch.from_numpy((np.random.default_rng(seed).standard_normal((rows, columns)) * scale).astype(np.float32))


def rank_one(rows: int, columns: int) -> torch.Tensor:
    """Return an outer product."""
    return torch.from_numpy(np.outer(np.arange(1, rows + 1), np.arange(-3, columns - 3)).astype(np.float32))


MATRICES = {
    "flat": torch.eye(24),
    "flat_rotated": with_spectrum(np.ones(24), 24, 40),
    "spiked": with_spectrum(np.r_[1e3, np.ones(30)], 31, 50),
    "falling": with_spectrum(0.8 ** np.arange(40), 40, 90),
    "tall": with_spectrum(0.9 ** np.arange(30), 120, 30),
    "rank_one": rank_one(12, 30),
    "row": random(1, 17),
    "column": random(17, 1),
    "single": torch.tensor([[-2.5]]),
    "tiny": random(20, 30, 1e-24),
    "huge": random(20, 30, 1e24),
    "denormal": random(20, 30, 1e-42),
    "zero_columns": torch.cat([torch.zeros(200, 150), random(200, 9), torch.zeros(200, 50)], 1),
    "scattered": torch.zeros(240, 260).index_put_(
        (torch.arange(0, 240)[:, None], torch.arange(3, 260, 13)), random(240, 20)
    ),
    "zero_rows": torch.cat([torch.zeros(100, 16), random(9, 16), torch.zeros(50, 16)]),
}


def smallest_ranks(matrix: torch.Tensor, threshold: float, tie: float = 1e-9) -> range:
    """Return the ranks that are the smallest with energy > threshold, by a float64 SVD: two at a tie."""
    energies = np.linalg.svd(matrix.double().numpy(), compute_uv=False) ** 2
    cumulative = np.cumsum(energies) / energies.sum()
    first, last = (int((cumulative <= threshold + margin).sum()) + 1 for margin in (-tie, tie))
    return range(min(first, len(energies)), min(last, len(energies)) + 1)


def energy(original: torch.Tensor, decoded: torch.Tensor) -> float:
    """Return 1 - |original - decoded|^2 / |original|^2, entry by entry in float64."""
    original, decoded = original.double(), decoded.double()
    total = float((original**2).sum())
    return 1.0 - float(((original - decoded) ** 2).sum()) / total if total else 1.0
