"""Validation of a data set before it is shared: arrays, labels, pixels and meta, with one line per error."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedkd_mpi.errors import UserError

Part = Mapping[str, np.ndarray]
TEXT = ("vocabulary", "length", "pad")


def check_dataset(name: str, train: Part, test: Part, tables: Part, meta: Any) -> None:
    """Raise UserError if arrays or meta cannot be shared among processes; independent of the task."""
    for part, arrays in (("train", train), ("test", test), ("tables", tables)):
        for key, array in arrays.items():
            where = f"data.name={name}: {part}[{key!r}]"
            if not isinstance(array, np.ndarray):
                raise UserError(f"{where} is a {type(array).__name__}, expected a NumPy array: np.asarray(...)")
            if array.dtype.kind not in "biufcSUmM" or not array.dtype.isnative:
                raise UserError(
                    f"{where} is of dtype {array.dtype}, expected numbers or texts in this machine's byte order"
                )
            if not array.ndim or not array.size:
                raise UserError(f"{where} is of shape {list(array.shape)}, expected at least one sample")
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


def check_inputs(name: str, train: Part, test: Part, inputs: Sequence[str]) -> None:
    """Raise UserError naming the first number of an input array that is not finite; missing arrays are ignored."""
    for part, arrays in (("train", train), ("test", test)):
        for key in inputs:
            if key not in arrays or arrays[key].dtype.kind not in "fc":
                continue
            array = arrays[key]
            if not np.isfinite(array).all():
                index = tuple(int(at) for at in np.argwhere(~np.isfinite(array))[0])
                raise UserError(
                    f"data.name={name}: {part}[{key!r}] has {array[index]} at {list(index)}, expected finite numbers"
                )


def check_images(name: str, train: Part, test: Part, meta: Mapping[str, Any]) -> None:
    """Raise UserError if images, labels or meta are invalid for task=image_classification."""
    _require(name, train, test, ("x", "y"), meta, ("classes", "scale", "mean", "std"))
    channels = len(train["x"].shape) > 1 and train["x"].shape[1]
    _inputs(name, train, test, ("channels", "height", "width"))
    due = f"one per channel of train['x'] {list(train['x'].shape)}, whose channels come second"
    _moments(name, meta, channels, f"{due}: [n, channels, height, width]")
    if not _is_number(meta["scale"]) or not np.isfinite(meta["scale"]):
        raise UserError(f"data.name={name}: meta['scale']={meta['scale']!r:.80}, expected a finite number")
    check_classes(name, train, test, meta)


def check_features(name: str, train: Part, test: Part, meta: Mapping[str, Any]) -> None:
    """Raise UserError where features, labels or meta are not those of task=tabular."""
    _require(name, train, test, ("x", "y"), meta, ("classes", "mean", "std"))
    _inputs(name, train, test, ("features",), " (of images, task=image_classification)")
    _moments(name, meta, train["x"].shape[-1], "one per feature")
    check_classes(name, train, test, meta)


def _inputs(name: str, train: Part, test: Part, axes: tuple[str, ...], hint: str = "") -> None:
    """Raise UserError unless x is [n, *axes], with finite numbers, of the same sizes in train and test."""
    for part, arrays in (("train", train), ("test", test)):
        x = arrays["x"]
        _pixels(f"data.name={name}: {part}['x']", x)
        if x.ndim != 1 + len(axes) or x.shape[1:] != train["x"].shape[1:]:
            raise UserError(
                f"data.name={name}: {part}['x'] is of shape {list(x.shape)}, expected [n, {', '.join(axes)}] "
                f"alike in train and test{hint}"
            )


def check_classes(name: str, train: Part, test: Part, meta: Mapping[str, Any]) -> None:
    """Raise UserError naming the first label that is not in meta["classes"]."""
    _require(name, train, test, ("y",), meta, ("classes",))
    classes = meta["classes"]
    if not isinstance(classes, list | tuple) or len(classes) < 2:
        raise UserError(f"data.name={name}: meta['classes']={classes!r:.80}, expected the names of 2 or more classes")
    due = f"expected int64 [n] in 0..{len(classes) - 1}, {len(classes)} classes"
    for part, arrays in (("train", train), ("test", test)):
        y = arrays["y"]
        where = f"data.name={name}: {part}['y']"
        if y.dtype.kind not in "biuf":
            raise UserError(f"{where} is {_kind(y)} and begins with {y.flat[0]!r:.40}, {due}")
        wrong = np.flatnonzero((y < 0) | (y >= len(classes))) if y.ndim == 1 else np.zeros(0, np.int64)
        if len(wrong):
            raise UserError(f"{where} has {y[wrong[0]]} at index {wrong[0]}, {due}")
        if y.ndim != 1 or y.dtype not in (np.int64, np.uint8):
            raise UserError(f"{where} is {_kind(y)} and begins with {y.flat[0]}, {due}: .astype(np.int64)")


def check_texts(name: str, train: Part, test: Part, meta: Mapping[str, Any]) -> None:
    """Raise UserError naming the first token that is not in the vocabulary, or that follows padding."""
    _require(name, train, test, ("ids",), meta, TEXT)
    for part, arrays in (("train", train), ("test", test)):
        _tokens(f"data.name={name}: {part}['ids']", arrays["ids"], *_text(name, meta))


def check_entities(name: str, train: Part, test: Part, meta: Mapping[str, Any]) -> None:
    """Raise UserError if token ids, tags or counts of missed entities are invalid for task=ner."""
    _require(name, train, test, ("ids", "tags", "missed"), meta, ("kinds", *TEXT))
    check_texts(name, train, test, meta)
    kinds = meta["kinds"]
    if not isinstance(kinds, list | tuple) or not kinds:
        raise UserError(f"data.name={name}: meta['kinds']={kinds!r:.80}, expected the names of the types of entities")
    for part, arrays in (("train", train), ("test", test)):
        ids, tags, missed = (arrays[key] for key in ("ids", "tags", "missed"))
        where, due = f"data.name={name}: {part}", f"expected -1 (no tag), 0 (O) .. {2 * len(kinds)}, {len(kinds)} types"
        if tags.shape != ids.shape or tags.dtype.kind not in "iu" or tags.dtype.itemsize > 8:
            raise UserError(f"{where}['tags'] is {_kind(tags)}, expected int8 {list(ids.shape)} as 'ids'")
        _within(f"{where}['tags']", tags, -1, 2 * len(kinds), due)
        padded = np.argwhere((ids == meta["pad"]) & (tags >= 0))
        if len(padded):
            row, column = map(int, padded[0])
            raise UserError(
                f"{where}['tags'] has {tags[row, column]} at [{row}, {column}], which is padding: -1 is due"
            )
        if missed.shape != (len(ids),) or missed.dtype != np.int64:
            raise UserError(f"{where}['missed'] is {_kind(missed)}, expected int64 [{len(ids)}]")
        _within(f"{where}['missed']", missed, 0, 2**31, "expected a number of entities, 0 or more")


def check_impressions(name: str, train: Part, test: Part, meta: Mapping[str, Any]) -> None:
    """Raise UserError if histories, candidates, clicks or titles are invalid for task=news."""
    _require(name, train, test, ("history", "candidates", "clicked"), meta, TEXT)
    if "titles" not in train:
        raise UserError(f"data.name={name}: tables lack 'titles', which task=news needs")
    titles = train["titles"]
    _tokens(f"data.name={name}: tables['titles']", titles, *_text(name, meta))
    due = f"expected 0 (no news) or a row of 'titles', 1..{len(titles) - 1}"
    for part, arrays in (("train", train), ("test", test)):
        where, (history, candidates, clicked) = (
            f"data.name={name}: {part}",
            (arrays[key] for key in ("history", "candidates", "clicked")),
        )
        for key, rows in (("history", history), ("candidates", candidates)):
            if rows.ndim != 2 or rows.dtype not in (np.int32, np.int64):
                raise UserError(f"{where}[{key!r}] is {_kind(rows)}, expected int32 [n, most]")
            _within(f"{where}[{key!r}]", rows, 0, len(titles) - 1, due)
        if clicked.shape != candidates.shape or clicked.dtype.kind not in "biu":
            raise UserError(f"{where}['clicked'] is {_kind(clicked)}, expected int8 {list(candidates.shape)}")
        hits, real = clicked > 0, candidates > 0
        lonely = np.flatnonzero(~((hits & real).any(1) & (~hits & real).any(1)) | (hits & ~real).any(1))
        if len(lonely):
            raise UserError(
                f"{where}['clicked']: sample {lonely[0]} must have a click and a news that was not clicked, and no "
                "click where there is no candidate"
            )


def check_pairs(name: str, train: Part, test: Part, meta: Mapping[str, Any]) -> None:
    """Raise UserError if noisy and clean images or the window are invalid for task=denoising."""
    _require(name, train, test, ("x", "y"), meta, ("window",))
    window = meta["window"]
    pair = isinstance(window, list | tuple) and len(window) == 2 and all(map(_is_number, window))
    if not pair or not np.isfinite(window).all() or window[0] >= window[1]:
        raise UserError(f"data.name={name}: meta['window']={window!r:.80}, expected two HU, the lower first")
    wide = meta.get("range", window)
    pair = isinstance(wide, list | tuple) and len(wide) == 2 and all(map(_is_number, wide))
    if not pair or not np.isfinite(wide).all() or not wide[0] <= window[0] < window[1] <= wide[1]:
        raise UserError(f"data.name={name}: meta['range']={wide!r:.80}, expected two HU around meta['window']")
    for part, arrays in (("train", train), ("test", test)):
        for key in "xy":
            where, image = f"data.name={name}: {part}[{key!r}]", arrays[key]
            if image.ndim != 4 or image.shape[1] != 1 or image.shape != arrays["x"].shape:
                raise UserError(f"{where} is of shape {list(image.shape)}, expected [n, 1, height, width], x like y")
            if min(image.shape[2:]) < 11:
                raise UserError(f"{where} is of shape {list(image.shape)}: SSIM needs images of 11 pixels per side")
            _pixels(where, image)
    check_inputs(name, train, test, "xy")


def _require(
    name: str, train: Part, test: Part, arrays: Sequence[str], meta: Mapping[str, Any], keys: Sequence[str]
) -> None:
    for part, there in (("train", train), ("test", test)):
        if missing := [key for key in arrays if key not in there]:
            raise UserError(f"data.name={name}: {part} lacks {', '.join(missing)}, which the task needs")
    if missing := [key for key in keys if key not in meta]:
        raise UserError(f"data.name={name}: meta lacks {', '.join(missing)}, which the task needs")


def _moments(name: str, meta: Mapping[str, Any], count: int | bool, due: str) -> None:
    for key in ("mean", "std"):
        values = meta[key]
        numbers = isinstance(values, list | tuple) and all(map(_is_number, values))
        if not numbers or len(values) != count:
            raise UserError(f"data.name={name}: meta[{key!r}]={values!r:.80}, expected {count} numbers, {due}")
        if not np.isfinite(values).all() or (key == "std" and min(values) <= 0):
            raise UserError(f"data.name={name}: meta[{key!r}]={values}, expected finite numbers, std above 0")


def _text(name: str, meta: Mapping[str, Any]) -> list[int]:
    for key in TEXT:
        if not isinstance(meta[key], int) or isinstance(meta[key], bool) or meta[key] < (key != "pad"):
            raise UserError(f"data.name={name}: meta[{key!r}]={meta[key]!r:.80}, expected a whole number")
    return [meta[key] for key in TEXT]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _pixels(where: str, array: np.ndarray) -> None:
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:  # tensors have no type of 16 bytes
        raise UserError(f"{where} is of dtype {array.dtype}, expected numbers of at most 8 bytes")


def _within(where: str, array: np.ndarray, low: int, high: int, due: str) -> None:
    wrong = np.argwhere((array < low) | (array > high))
    if len(wrong):
        index = tuple(map(int, wrong[0]))
        raise UserError(f"{where} has {array[index]} at {list(index)}, {due}")


def _tokens(where: str, ids: np.ndarray, vocabulary: int, length: int, pad: int) -> None:
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
