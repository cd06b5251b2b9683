"""Pooled data sets: no sample is lost or doubled, and parts that do not fit are named."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedkd_mpi.datasets import Dataset, image_dataset
from fedkd_mpi.datasets.pooling import centred, hold_out, pool
from fedkd_mpi.errors import UserError


def images(train: int, test: int, classes: int = 4) -> Dataset:
    """Return images whose first two pixels are their number, and their class the number modulo `classes`."""
    number = np.arange(train + test)
    x = np.zeros((len(number), 1, 2, 2), np.uint8)
    x[:, 0, 0, 0], x[:, 0, 0, 1] = number % 256, number // 256
    whole = {"x": x, "y": number % classes}
    parts = ({name: array[part] for name, array in whole.items()} for part in (slice(train), slice(train, None)))
    return image_dataset(*parts, [str(name) for name in range(classes)], scale=1 / 255)


def numbers(arrays: dict[str, np.ndarray]) -> list[int]:
    return (arrays["x"][:, 0, 0, 0].astype(int) + 256 * arrays["x"][:, 0, 0, 1].astype(int)).tolist()


@given(st.integers(8, 300), st.integers(8, 300), st.floats(0.05, 0.9), st.integers(0, 99))
def test_every_sample_is_in_one_part_and_classes_are_held_out_alike(train, test, share, seed):
    pooled = pool(images(train, test))
    assert numbers(pooled.train) == list(range(train + test))
    assert {len(array) for array in pooled.test.values()} == {0}
    found = hold_out(pooled, pooled.train["y"], share, np.random.default_rng(seed))
    assert sorted(numbers(found.train) + numbers(found.test)) == list(range(train + test))
    assert len(found.test["y"]) == pytest.approx(share * (train + test), abs=1)
    held, all_of = np.bincount(found.test["y"], minlength=4), np.bincount(pooled.train["y"])
    assert np.abs(held - share * all_of).max() <= 1.5
    for part in (found.train, found.test):
        assert [number % 4 for number in numbers(part)] == part["y"].tolist()


@pytest.mark.parametrize(
    ("name", "array", "found"),
    [("x", np.zeros((8, 1, 3, 2), np.uint8), r"is uint8 \[8, 1, 3, 2\]"), ("y", np.zeros(8, np.int32), "is int32")],
)
def test_parts_that_do_not_fit_are_named(name: str, array: np.ndarray, found: str):
    dataset = images(8, 8)
    with pytest.raises(UserError, match=rf"data.pooled: train\['{name}'\].*{found}"):
        pool(replace(dataset, test=dataset.test | {name: array}))
    with pytest.raises(UserError, match=r"test\['seen'\] is not in the training part"):
        pool(replace(dataset, test=dataset.test | {"seen": dataset.test["y"]}))
    with pytest.raises(UserError, match=rf"test\['{name}'\] is missing"):
        pool(replace(dataset, test={key: kept for key, kept in dataset.test.items() if key != name}))


def test_pixels_of_half_run_from_minus_one_to_one():
    meta = centred(images(300, 8)).meta
    ends = (np.array([0, 255]) * meta["scale"] - meta["mean"][0]) / meta["std"][0]
    np.testing.assert_allclose(ends, [-1, 1])


BYTES = {"x": np.full((2, 1, 2, 2), 200, np.uint8)}
MOMENTS = {"scale": 1 / 255, "mean": [0.1], "std": [0.3]}


@pytest.mark.parametrize(
    ("arrays", "meta", "says"),
    [
        ({"x": np.zeros((2, 3))}, {}, "for images of 8 bits"),
        (BYTES, {}, "for images of 8 bits"),
        ({"ids": BYTES["x"]}, MOMENTS, "for images of 8 bits"),
        ({"x": BYTES["x"].astype(np.float32)}, MOMENTS, "for images of 8 bits"),
        ({"x": BYTES["x"][:, 0, 0]}, MOMENTS, "for images of 8 bits"),
        (BYTES, MOMENTS | {"scale": 1.0}, r"up to 200 \* meta\['scale'\] = 200;"),
        (BYTES, MOMENTS | {"scale": -1.0}, r"up to 200 \* meta\['scale'\] = -200;"),
    ],
)
def test_half_is_refused_where_pixels_are_not_those_of_images_from_zero_to_one(arrays, meta, says):
    with pytest.raises(UserError, match=rf"data\.pixels=half is .*{says}"):
        centred(Dataset(arrays, arrays, meta))
