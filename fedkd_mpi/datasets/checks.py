"""What a data set must be before it is shared: arrays, labels, pixels and meta, each fault named in one line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from fedkd_mpi.errors import UserError

Part = Mapping[str, np.ndarray]


def check_dataset(name: str, train: Part, test: Part, tables: Part, meta: Any) -> None:
    """Raise UserError where arrays or meta could not be shared among processes, whatever the task."""
    for part, arrays in (("train", train), ("test", test), ("tables", tables)):
        for key, array in arrays.items():
            where = f"data.name={name}: {part}[{key!r}]"
            if not isinstance(array, np.ndarray):
                raise UserError(f"{where} is a {type(array).__name__}, expected a NumPy array: np.asarray(...)")
            if array.dtype.kind not in "biuf" or not array.dtype.isnative:
                raise UserError(f"{where} is of dtype {array.dtype}, expected numbers in this machine's byte order")
            if not array.ndim or not len(array):
                raise UserError(f"{where} is of shape {list(array.shape)}, expected at least one sample")
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                index = tuple(int(at) for at in np.argwhere(~np.isfinite(array))[0])
                raise UserError(f"{where} has {array[index]} at {list(index)}, expected finite numbers")
    for key in ("group", "document"):
        if key in train and (train[key].ndim != 1 or train[key].dtype.kind not in "iu"):
            raise UserError(f"data.name={name}: train[{key!r}] must be int64 [n], it is {_kind(train[key])}")
    if not isinstance(meta, Mapping):
        raise UserError(f"data.name={name}: meta is a {type(meta).__name__}, expected a dict")
    for key, value in meta.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"data.name={name}: meta[{key!r}]={value!r:.80}: {error}; expected plain numbers, texts and lists"
            ) from None


def check_images(name: str, train: Part, test: Part, meta: Mapping[str, Any]) -> None:
    """Raise UserError where images, labels or meta are not those of image classification."""
    for key in ("classes", "scale", "mean", "std"):
        if key not in meta:
            raise UserError(f"data.name={name}: meta lacks {key!r}, which task=image_classification needs")
    channels = len(train["x"].shape) > 1 and train["x"].shape[1]
    for part, arrays in (("train", train), ("test", test)):
        x = arrays["x"]
        if x.ndim != 4 or x.shape[1:] != train["x"].shape[1:]:
            raise UserError(
                f"data.name={name}: {part}['x'] is of shape {list(x.shape)}, expected [n, channels, height, width] "
                "alike in train and test"
            )
    for key in ("mean", "std"):
        values = meta[key]
        numbers = isinstance(values, list | tuple) and all(isinstance(v, int | float) for v in values)
        if not numbers or len(values) != channels:
            raise UserError(
                f"data.name={name}: meta[{key!r}]={values!r:.80}, expected {channels} numbers, one per channel of "
                f"train['x'] {list(train['x'].shape)}, whose channels come second: [n, channels, height, width]"
            )
        if not np.isfinite(values).all() or (key == "std" and min(values) <= 0):
            raise UserError(f"data.name={name}: meta[{key!r}]={values}, expected finite numbers, std above 0")
    check_classes(name, train, test, meta)


def check_classes(name: str, train: Part, test: Part, meta: Mapping[str, Any]) -> None:
    """Raise UserError naming the first label that is none of meta["classes"]."""
    classes = meta["classes"]
    if not isinstance(classes, list | tuple) or len(classes) < 2:
        raise UserError(f"data.name={name}: meta['classes']={classes!r:.80}, expected the names of 2 or more classes")
    due = f"expected int64 [n] in 0..{len(classes) - 1}, {len(classes)} classes"
    for part, arrays in (("train", train), ("test", test)):
        y = arrays["y"]
        where = f"data.name={name}: {part}['y']"
        wrong = np.flatnonzero((y < 0) | (y >= len(classes))) if y.ndim == 1 and len(y) else ()
        if len(wrong):
            raise UserError(f"{where} has {y[wrong[0]]} at index {wrong[0]}, {due}")
        if y.ndim != 1 or y.dtype not in (np.int64, np.uint8):
            raise UserError(f"{where} is {_kind(y)} and begins with {y.flat[0]}, {due}: .astype(np.int64)")


def check_texts(name: str, train: Part, test: Part, meta: Mapping[str, Any]) -> None:
    """Raise UserError naming the first token that is not of the vocabulary, or that stands behind padding."""
    if missing := [key for key in ("vocabulary", "length", "pad") if not isinstance(meta.get(key), int)]:
        raise UserError(f"data.name={name}: meta lacks {', '.join(missing)}, whole numbers that tasks on texts need")
    vocabulary, length, pad = (meta[key] for key in ("vocabulary", "length", "pad"))
    for part, arrays in (("train", train), ("test", test)):
        ids = arrays["ids"]
        where = f"data.name={name}: {part}['ids']"
        if ids.ndim != 2 or ids.shape[1] != length or ids.dtype.kind not in "iu":
            raise UserError(f"{where} is {_kind(ids)}, expected int32 [n, {length}], by meta['length']")
        wrong = np.argwhere((ids < 0) | (ids >= vocabulary))
        if len(wrong):
            row, column = map(int, wrong[0])
            raise UserError(f"{where} has {ids[row, column]} at [{row}, {column}], expected 0..{vocabulary - 1}")
        behind = np.argwhere((ids[:, :-1] == pad) & (ids[:, 1:] != pad))
        if len(behind):
            row, column = map(int, behind[0])
            raise UserError(f"{where} has a token behind padding at [{row}, {column + 1}]: pad rows at their end")


def _kind(array: np.ndarray) -> str:
    return f"{array.dtype} {list(array.shape)}"
