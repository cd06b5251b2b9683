"""The handwritten digits without the import of scikit-learn, which takes a process nearly as long as that of torch."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

from fedkd_mpi.datasets import Dataset, image_dataset
from fedkd_mpi.datasets.digits import TEST_FRACTION, TEST_SEED
from fedkd_mpi.datasets.partition import split

PLAIN_DIGITS = "data.name=plain_digits:load"  # for runs in processes of their own


def load(root: Path | None, seed: int) -> Dataset:
    """Return what fedkd_mpi.datasets.digits.load does."""
    package = Path(importlib.util.find_spec("sklearn").origin).parent
    table = np.loadtxt(package / "datasets/data/digits.csv.gz", delimiter=",", dtype=np.int64)
    x, y = table[:, :64].astype(np.uint8).reshape(-1, 1, 8, 8), table[:, 64]
    parts = split(np.arange(len(y)), y, TEST_FRACTION, np.random.Generator(np.random.Philox(TEST_SEED)))
    train, test = ({"x": x[part], "y": y[part]} for part in parts)
    return image_dataset(train, test, [str(name) for name in np.unique(y)], scale=1 / 16)
