"""A user's own loaders (one as it should be, two that are refused) and partitioner."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedkd_mpi.datasets import Dataset


def good(root: Path | None, seed: int) -> Dataset:
    """Three training samples, one test sample."""
    return Dataset({"x": np.zeros(3), "y": np.arange(3)}, {"x": np.zeros(1), "y": np.zeros(1)}, {"seed": seed})


def uneven(root: Path | None, seed: int) -> Dataset:
    """Three inputs, but two labels."""
    return Dataset({"x": np.zeros(3), "y": np.arange(2)}, {"x": np.zeros(1), "y": np.zeros(1)}, {})


def bare(root: Path | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Arrays in place of a Dataset."""
    return np.zeros(3), np.zeros(3)


def halves(labels: np.ndarray, num_clients: int, rng: np.random.Generator, **_: object) -> np.ndarray:
    """The client of each of ten samples: the first half are client 0's, the others client 1's."""
    return np.arange(len(labels)) * 2 // 10
