"""What tests train on in processes of their own is what the product calls digits."""

from __future__ import annotations

import numpy as np

from fedkd_mpi.datasets import load


def test_the_plain_digits_of_these_tests_are_the_digits():
    ours, plain = load("digits", None, seed=0), load("plain_digits:load", None, seed=0)
    assert plain.meta == ours.meta
    for part in ("train", "test"):
        for name, array in getattr(ours, part).items():
            np.testing.assert_array_equal(getattr(plain, part)[name], array, strict=True)
