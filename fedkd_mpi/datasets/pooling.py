"""A data set arranged as published protocols have it: parts pooled (data.pooled), pixels in -1..1 (data.pixels)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedkd_mpi.datasets import Dataset
from fedkd_mpi.datasets.partition import split
from fedkd_mpi.errors import UserError

ROUNDING = 1e-6  # of 255 * (1 / 255) and the like


def pool(dataset: Dataset) -> Dataset:
    """Return a Dataset whose training part is the training part followed by the test part; its test part is empty.

    Raises UserError if an array of one part is missing in the other or differs in type or shape there.
    """
    if more := [name for name in dataset.test if name not in dataset.train]:
        raise UserError(f"data.pooled: test['{more[0]}'] is not in the training part: these parts cannot be pooled")
    whole = {}
    for name, train in dataset.train.items():
        test = dataset.test.get(name)
        if test is None or test.dtype != train.dtype or test.shape[1:] != train.shape[1:]:
            found = "is missing" if test is None else f"is {test.dtype} {list(test.shape)}"
            raise UserError(
                f"data.pooled: train['{name}'] is {train.dtype} {list(train.shape)}, but test['{name}'] {found}: these "
                "parts cannot be pooled"
            )
        whole[name] = np.concatenate([train, test])
    return replace(dataset, train=whole, test={name: array[:0] for name, array in whole.items()})


def hold_out(pooled: Dataset, labels: np.ndarray, share: float, rng: np.random.Generator) -> Dataset:
    """Return a Dataset in which `share` of the pooled samples are the global test set, of every class alike.

    `labels` is [n], or of more dimensions where samples have no class; the order of samples is kept.
    """
    whole = pooled.train
    classes = labels if labels.ndim == 1 else np.zeros(len(labels), np.int64)
    train, test = split(np.arange(len(labels)), classes, share, rng, whole.get("document"))
    return replace(
        pooled,
        train={name: array[train] for name, array in whole.items()},
        test={name: array[test] for name, array in whole.items()},
    )


def centred(dataset: Dataset) -> Dataset:
    """Return a Dataset of images whose networks get (x - 0.5) / 0.5 of pixels in 0..1; raises UserError for others."""
    meta, images = dataset.meta, [part.get("x", np.empty(0)) for part in (dataset.train, dataset.test)]
    if not {"scale", "mean", "std"} <= meta.keys() or any(x.dtype != np.uint8 or x.ndim != 4 for x in images):
        raise UserError("data.pixels=half is for images of 8 bits; set data.pixels=standardised")
    largest = max(int(x.max(initial=0)) for x in images)
    if not 0 < meta["scale"] * max(largest, 1) < 1 + ROUNDING:
        raise UserError(
            f"data.pixels=half is for pixels of 0..1, but those of the data are up to {largest} * meta['scale'] ="
            f" {largest * meta['scale']:g}; set data.pixels=standardised"
        )
    half = [0.5] * images[0].shape[1]
    return replace(dataset, meta={**meta, "mean": half, "std": half})
