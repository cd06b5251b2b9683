"""data.name=npz: inputs and classes as arrays of a NumPy .npz file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fedkd_mpi.datasets import Dataset
from fedkd_mpi.datasets.npz_file import NpzFile
from fedkd_mpi.datasets.own import Narrowing, finite, path_of, plan
from fedkd_mpi.datasets.own_options import NpzOptions
from fedkd_mpi.errors import UserError

CHANNELS = 4  # red, green, blue, alpha: images of more have their channels elsewhere


def load(root: Path | None, seed: int, **keys: Any) -> Dataset:
    """Return images [n, C, H, W] (bytes, or float32) or features float32 [n, features]; raises UserError.

    Reads nothing of `root`; `keys` are those of NpzOptions.
    """
    options = NpzOptions(**keys)
    file = NpzFile(path_of(options.path))
    apart = [name for name in (options.x_test, options.y_test) if name]
    extra = [name for name in (options.client, options.split, options.id) if name in file.names and not apart]
    arrays = file.read([options.x, options.y, *apart, *extra])
    x, y = [arrays[options.x]], [arrays[options.y]]
    splits = arrays.get(options.split)
    if apart:
        x.append(arrays[apart[0]])
        y.append(arrays[apart[1]])
        splits = np.repeat(["train", "test"], [len(part) if part.ndim else 0 for part in x])
    names = [options.x, *apart[:1]]
    x = [_inputs(file.path, name, part, options.channels_last) for name, part in zip(names, x, strict=True)]
    y = [_vector(file.path, name, part) for name, part in zip([options.y, *apart[1:]], y, strict=True)]
    for (x_name, inputs), (y_name, labels) in zip(
        zip(names, x, strict=True), zip([options.y, *apart[1:]], y, strict=True), strict=True
    ):
        if len(inputs) != len(labels):
            raise UserError(f"{file.path}: {x_name!r} has {len(inputs)} samples, {y_name!r} has {len(labels)}")
        if inputs.shape[1:] != x[0].shape[1:] or inputs.dtype != x[0].dtype:
            raise UserError(
                f"{file.path}: {x_name!r} is {inputs.dtype} {list(inputs.shape)}, {names[0]!r} is {x[0].dtype} "
                f"{list(x[0].shape)}: samples must be alike"
            )
    further = {name: _vector(file.path, name, arrays[name]) for name in extra}
    for name, values in further.items():
        if len(values) != len(x[0]):
            raise UserError(f"{file.path}: {name!r} has {len(values)} entries, {options.x!r} has {len(x[0])} samples")
    first = len(x[0])

    def where(row: int) -> str:
        return f"{file.path}: {options.y}[{row}]" if row < first else f"{file.path}: {options.y_test}[{row - first}]"

    planned = plan(
        str(file.path),
        np.concatenate(y),
        where,
        options.test_fraction,
        splits=further.get(options.split, splits),
        clients=further.get(options.client),
        ids=further[options.id].tolist() if options.id in further else None,
    )
    train, test = x if apart else (x[0][planned.train], x[0][planned.test])
    if train.ndim == 2:
        return planned.features(train, test, _features(options.x, train.shape[1]), options.standardise)
    return planned.images(train, test, options.standardise)


def _inputs(path: Path, name: str, x: np.ndarray, channels_last: bool | None) -> np.ndarray:
    """Return inputs as they are shared: bytes remain bytes, other numbers become float32, images [n, C, H, W]."""
    if x.dtype.kind not in "biuf" or x.dtype.itemsize > 8 or x.ndim not in (2, 3, 4) or not x.size:
        raise UserError(
            f"{path}: {name!r} is {x.dtype} {list(x.shape)}, expected numbers [n, features], [n, height, width] or "
            "[n, channels, height, width]"
        )
    if x.ndim == 2:
        narrow = Narrowing()
        x = finite(narrow(x), lambda at: f"{path}: {name}{list(at)}")
        narrow.require(str(path), _features(name, x.shape[1]))
    elif x.dtype != np.uint8:
        with np.errstate(over="ignore"):
            x = finite(x.astype(np.float32, copy=False), lambda at: f"{path}: {name}{list(at)}")
    if x.ndim == 3:
        return x[:, np.newaxis]
    if x.ndim == 4 and channels_last is None and x.shape[1] > CHANNELS >= x.shape[3]:
        raise UserError(
            f"{path}: {name!r} {list(x.shape)} seems to have its channels last: say data.channels_last=true, or false"
        )
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2)) if x.ndim == 4 and channels_last else x


def _features(name: str, count: int) -> list[str]:
    return [f"{name}[{column}]" for column in range(count)]


def _vector(path: Path, name: str, values: np.ndarray) -> np.ndarray:
    """Return one value for each sample; raises UserError where there are several, as in one-hot rows."""
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.dtype.kind == "S":
        try:
            values = np.char.decode(values, "utf-8")
        except UnicodeDecodeError:
            raise UserError(f"{path}: {name!r} holds bytes that are no UTF-8 text: save it with .astype(str)") from None
    if values.ndim != 1 or not values.size or values.dtype.kind not in "biufU":
        hint = ": of one-hot rows, .argmax(1)" if values.ndim == 2 else ""
        raise UserError(
            f"{path}: {name!r} is {values.dtype} {list(values.shape)}, expected a number or text for each sample{hint}"
        )
    return values
