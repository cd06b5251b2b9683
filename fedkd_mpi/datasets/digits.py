"""The handwritten digits that scikit-learn contains: 1797 images of 8x8 pixels, grey levels 0..16."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedkd_mpi.datasets import Dataset, image_dataset
from fedkd_mpi.datasets.partition import split

TEST_FRACTION = 0.2
TEST_SEED = 1797


def load(root: Path | None, seed: int) -> Dataset:
    """Return the digits with a stratified fifth as test set: x uint8 [n, 1, 8, 8], y int64 [n]; `root` is not used.

    Source: Alpaydin and Kaynak 1998, UCI "Optical Recognition of Handwritten Digits", by sklearn.datasets.load_digits.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = digits.images.astype(np.uint8)[:, np.newaxis]
    y = digits.target.astype(np.int64)
    # A fixed seed instead of the run's seed, so that runs with different seeds have the same test set.
    rng = np.random.Generator(np.random.Philox(TEST_SEED))
    parts = split(np.arange(len(y)), y, TEST_FRACTION, rng)
    train, test = ({"x": x[part], "y": y[part]} for part in parts)
    return image_dataset(train, test, [str(name) for name in digits.target_names], scale=1 / 16)
