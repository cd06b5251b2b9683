"""What the readers of a user's own files have in common: classes, owners, the held-out part, means and deviations."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedkd_mpi.datasets import Dataset, expanded, image_dataset
from fedkd_mpi.datasets.partition import split
from fedkd_mpi.datasets.tokens import Tokens
from fedkd_mpi.errors import UserError, shown

TEST_SEED = 2006  # a fixed seed in place of the run's: runs of different seeds are scored on the same test set
PARTS = ("train", "test")
BLOCK = 4096  # samples whose sums are taken at once
LOST = 1e-3  # of a feature's range: what float32 may change of its values


@dataclass(frozen=True)
class Plan:
    """Which samples of a file are for training and which are the global test set, with all that is known but inputs.

    `train` and `test` are rows of the file; `arrays` hold for every row "y", and where the file names them "group"
    and "id"; `meta` has the names of classes and owners.
    """

    source: str
    train: np.ndarray
    test: np.ndarray
    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]

    def part(self, rows: np.ndarray, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Return the arrays of a part with its inputs before them."""
        return {**inputs, **{name: array[rows] for name, array in self.arrays.items()}}

    def images(self, train: np.ndarray, test: np.ndarray, standardise: bool) -> Dataset:
        """Return a Dataset of images [n, C, H, W] of bytes (scaled to 0..1) or of float32 (as they are)."""
        parts = self.part(self.train, x=train), self.part(self.test, x=test)
        if train.dtype == np.uint8:
            found = image_dataset(*parts, self.meta["classes"], scale=1 / 255)
            mean, std = found.meta["mean"], found.meta["std"]
        else:
            mean, std = moments(train, (0, 2, 3))
            std = [spread or 1.0 for spread in std]
        if not standardise:
            mean, std = [0.0] * len(mean), [1.0] * len(std)
        scale = 1 / 255 if train.dtype == np.uint8 else 1.0
        return Dataset(*parts, {**self.meta, "scale": scale, "mean": mean, "std": std})

    def features(self, train: np.ndarray, test: np.ndarray, names: Sequence[str], standardise: bool) -> Dataset:
        """Return a Dataset of float32 features [n, features] of these names."""
        mean, std = moments(train, (0,))
        std = [spread or 1.0 for spread in std]
        if not standardise:
            mean, std = [0.0] * len(mean), [1.0] * len(std)
        meta = {**self.meta, "features": list(names), "mean": mean, "std": std}
        return Dataset(self.part(self.train, x=train), self.part(self.test, x=test), meta)

    def texts(self, texts: Sequence[str], tokens: Tokens) -> Dataset:
        """Return a Dataset of texts, a text for each row of the file, as token ids; raises UserError."""
        encoder = tokens.fit([texts[row] for row in self.train])
        train, test = (
            self.part(rows, ids=encoder.rows(encoder.encode([texts[row] for row in rows])))
            for rows in (self.train, self.test)
        )
        return Dataset(train, test, {**self.meta, **encoder.meta}, encoder.table)


class Narrowing:
    """Features as float32, and what that changed of their values, over all blocks of rows that it was called with."""

    def __init__(self) -> None:
        self._span: np.ndarray | None = None  # [3, features]: largest, minus the smallest, largest change

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return numbers [n, features] as float32."""
        with np.errstate(over="ignore", invalid="ignore"):
            wide = x.astype(np.float64, copy=False)
            single = x.astype(np.float32)
            span = np.stack([wide.max(axis=0), -wide.min(axis=0), np.abs(wide - single).max(axis=0)])
        self._span = span if self._span is None else np.maximum(self._span, span)
        return single

    def require(self, source: str, names: Sequence[str]) -> None:
        """Raise UserError naming the first feature whose values float32 does not tell apart."""
        if self._span is None:
            return
        high, low, change = self._span[0], -self._span[1], self._span[2]
        wrong = np.flatnonzero(change > LOST * (high - low))
        wrong = wrong[high[wrong] > low[wrong]]
        if wrong.size:
            at = int(wrong[0])
            raise UserError(
                f"{source}: feature {shown(names[at])!r} goes from {low[at]:.10g} to {high[at]:.10g}: single precision "
                "does not tell its values apart; subtract a constant from it"
            )


def path_of(path: str) -> Path:
    """Return the path that data.path names; raises UserError where there is none."""
    found = expanded(path)
    if not found.exists():
        raise UserError(f"data.path={shown(path)}: no such file or folder (working directory: {Path.cwd()})")
    return found


def plan(
    source: str,
    labels: Sequence[str] | np.ndarray,
    where: Callable[[int], str],
    test_fraction: float,
    *,
    splits: Sequence[str] | np.ndarray | None = None,
    clients: Sequence[str] | np.ndarray | None = None,
    ids: Sequence[str] | None = None,
) -> Plan:
    """Return which samples are for training and for the global test set, and what is known of them.

    All are given for every sample of the file `source`; `where` names the place of one in it. `splits` says "train" or
    "test"; without it the same samples of every class are held out, whatever the run's seed. Classes and owners are
    in the order of their names, of their numbers where all are whole numbers. Raises UserError.
    """
    names, y = coded(labels, where, "label")
    if len(names) < 2:
        raise UserError(f"{source}: all {len(y)} samples are of class {names[0]!r}, where two classes are needed")
    train, test = _held_out(source, y, test_fraction) if splits is None else _parts(source, splits, where)
    untrained = np.setdiff1d(y[test], y[train])
    if untrained.size:
        first = int(test[np.flatnonzero(y[test] == untrained[0])[0]])
        raise UserError(
            f"{where(first)}: class {names[untrained[0]]!r} has no sample in the training part: leave it out, or give "
            "it more samples"
        )
    arrays, meta = {"y": y}, {"classes": names}
    if clients is not None:
        meta["clients"], arrays["group"] = coded(clients, where, "client")
    if ids is not None:
        arrays["id"] = _unique(ids, where)
    return Plan(source, train, test, arrays, meta)


def coded(values: Sequence[str] | np.ndarray, where: Callable[[int], str], what: str) -> tuple[list[str], np.ndarray]:
    """Return the sorted names among `values`, and for each value its place among them, int64 [n].

    Raises UserError naming the first that is empty or no whole number, text or truth value.
    """
    array = np.asarray(values)
    if array.dtype.kind == "f":
        wrong = np.flatnonzero(~np.isfinite(array) | (array != np.floor(array)) | (np.abs(array) >= 2**53))
        if wrong.size:
            raise UserError(
                f"{where(int(wrong[0]))}: {what} {array[wrong[0]]}, expected a whole number or a text for each class"
            )
        array = array.astype(np.int64)
    if array.dtype.kind not in "biuU":
        raise UserError(f"{where(0)}: {what} of type {array.dtype}, expected whole numbers or texts")
    unique, code = np.unique(array, return_inverse=True)
    names = [str(value) for value in unique.tolist()]
    if "" in (name.strip() for name in names):
        first = int(np.flatnonzero(code == [name.strip() for name in names].index(""))[0])
        raise UserError(f"{where(first)}: the {what} is empty: fill it in, or leave the sample out")
    for code_of, name in enumerate(names):
        if not name.isprintable():
            first = int(np.flatnonzero(code == code_of)[0])
            raise UserError(f"{where(first)}: {what} {shown(name)} holds what is no printable text: rename it")
    order = np.arange(len(names))
    if array.dtype.kind == "U" and all(re.fullmatch(r"[+-]?[0-9]{1,18}", name) for name in names):
        order = np.array(sorted(order, key=lambda at: (int(names[at]), names[at])))
    place = np.empty(len(names), np.int64)
    place[order] = np.arange(len(names))
    return [names[at] for at in order], place[code.reshape(-1)]


def moments(x: np.ndarray, axes: tuple[int, ...]) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation over axes, in float64; 0 exactly where all are the same."""
    kept = tuple(size for axis, size in enumerate(x.shape) if axis not in axes)
    count = x.size // int(np.prod(kept))
    blocks = range(0, len(x), BLOCK)
    mean = sum(x[at : at + BLOCK].sum(axis=axes, dtype=np.float64) for at in blocks) / count
    centre = np.expand_dims(mean, axes)
    square = sum(((x[at : at + BLOCK] - centre) ** 2).sum(axis=axes) for at in blocks) / count
    varies = x.max(axis=axes) > x.min(axis=axes)
    return mean.tolist(), np.where(varies, np.sqrt(square), 0.0).tolist()


def finite(x: np.ndarray, where: Callable[[tuple[int, ...]], str]) -> np.ndarray:
    """Return the array; raises UserError naming the place of its first number that is not finite."""
    wrong = np.argwhere(~np.isfinite(x))
    if len(wrong):
        index = tuple(map(int, wrong[0]))
        raise UserError(f"{where(index)} is {x[index]}, expected a finite number: fill it in, or leave the sample out")
    return x


def _held_out(source: str, y: np.ndarray, test_fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the samples to train on and those held out; the only sample of a class is for training."""
    alone = np.bincount(y)[y] == 1
    if alone.all():
        raise UserError(f"{source}: each of the {len(y)} samples is a class of its own: data.label is no class")
    train, test = split(np.flatnonzero(~alone), y, test_fraction, np.random.Generator(np.random.Philox(TEST_SEED)))
    return np.sort(np.concatenate([train, np.flatnonzero(alone)])), test


def _parts(
    source: str, splits: Sequence[str] | np.ndarray, where: Callable[[int], str]
) -> tuple[np.ndarray, np.ndarray]:
    names = np.char.lower(np.char.strip(np.asarray(splits, dtype=str)))
    wrong = np.flatnonzero(~np.isin(names, PARTS))
    if wrong.size:
        row = int(wrong[0])
        raise UserError(f"{where(row)}: split {shown(str(splits[row]))!r}, expected train or test")
    train, test = (np.flatnonzero(names == part) for part in PARTS)
    for part, rows in zip(PARTS, (train, test), strict=True):
        if not len(rows):
            raise UserError(f"{source}: no sample is of the {part} part; leave data.split out to hold some out")
    return train, test


def _unique(ids: Sequence[str], where: Callable[[int], str]) -> np.ndarray:
    array = np.array([str(name).encode("utf-8", "surrogateescape") for name in ids], np.bytes_)
    _, first, counts = np.unique(array, return_index=True, return_counts=True)
    twice = np.flatnonzero(counts > 1)
    if twice.size:
        again = int(np.flatnonzero(array == array[first[twice[0]]])[1])
        raise UserError(f"{where(again)}: id {shown(str(ids[again]))!r} is that of a sample before it")
    return array
