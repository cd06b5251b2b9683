"""Readers of official on-disk formats, one file per format, behind one function: load(name, root, seed)."""

from __future__ import annotations

import gzip
import inspect
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from fedkd_mpi.common.registry import function_of, resolve
from fedkd_mpi.datasets.folders import FOLDERS
from fedkd_mpi.errors import UserError

LOADERS = {
    "digits": "fedkd_mpi.datasets.digits:load",
    "mnist": "fedkd_mpi.datasets.idx:load_mnist",
    "fashion_mnist": "fedkd_mpi.datasets.idx:load_fashion_mnist",
    "cifar10": "fedkd_mpi.datasets.cifar:load_cifar10",
    "cifar100": "fedkd_mpi.datasets.cifar:load_cifar100",
    "tiny_imagenet": "fedkd_mpi.datasets.tiny_imagenet:load_tiny_imagenet",
    "flowers102": "fedkd_mpi.datasets.flowers:load_flowers102",
    "mayo_ct": "fedkd_mpi.datasets.mayo_ct:load_mayo_ct",
    "ade": "fedkd_mpi.datasets.ade:load",
    "smm4h": "fedkd_mpi.datasets.smm4h:load",
    "medical_ner": "fedkd_mpi.datasets.corpora:load",
    "mind_small": "fedkd_mpi.datasets.mind:load_small",
    "mind_large": "fedkd_mpi.datasets.mind:load_large",
    "folder": "fedkd_mpi.datasets.folder:load",
    "csv": "fedkd_mpi.datasets.csv_table:load",
    "npz": "fedkd_mpi.datasets.npz:load",
    "hf": "fedkd_mpi.datasets.hf:load",
}
OWN = ("folder", "csv", "npz", "hf")  # a user's own files, which may hold anything
# Made-up data sets of the official sizes, which --dry-run uses if the files are missing.
STAND_INS = {
    "mnist": "fedkd_mpi.datasets.idx:stand_in_mnist",
    "fashion_mnist": "fedkd_mpi.datasets.idx:stand_in_fashion_mnist",
    "cifar10": "fedkd_mpi.datasets.cifar:stand_in_cifar10",
    "cifar100": "fedkd_mpi.datasets.cifar:stand_in_cifar100",
    "tiny_imagenet": "fedkd_mpi.datasets.tiny_imagenet:stand_in_tiny_imagenet",
    "flowers102": "fedkd_mpi.datasets.flowers:stand_in_flowers102",
    "mayo_ct": "fedkd_mpi.datasets.mayo_ct:stand_in_mayo_ct",
    "ade": "fedkd_mpi.datasets.ade:stand_in",
    "smm4h": "fedkd_mpi.datasets.smm4h:stand_in",
    "medical_ner": "fedkd_mpi.datasets.corpora:stand_in",
    "mind_small": "fedkd_mpi.datasets.mind:stand_in_small",
    "mind_large": "fedkd_mpi.datasets.mind:stand_in_large",
}


STRAY = ("thumbs.db", "desktop.ini", "__macosx")  # in addition to all names that begin with a dot
HEADER, BLOCK = 1024, 2**20  # bytes that are read before the size of a file is known, and per read


class MissingData(UserError):
    """The folder of a data set is missing."""


@dataclass(frozen=True)
class Dataset:
    """A training set, which is divided among the clients, and a separate global test set.

    `train` and `test` contain arrays with a common first dimension: for images "x" uint8 [n, channel, height, width]
    and "y" int64 [n]; "group" int64 [n] if samples have natural owners (partition.kind=natural); "document" int64 [n]
    if samples of one document must not be split between training and test of a client. `meta` is JSON-serialisable:
    "classes" (names, in label order), and for images "scale", "mean" and "std" (per channel); the input of a model is
    (x * scale - mean) / std. `tables` contains arrays to which samples refer by row; a task gets them with the training
    arrays.
    """

    train: dict[str, np.ndarray]
    test: dict[str, np.ndarray]
    meta: dict[str, Any]
    tables: dict[str, np.ndarray] = field(default_factory=dict)


def check(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a data set with its defaults; those of a user's data set are returned unchanged.

    Raises UserError for an unknown key or an invalid value.
    """
    from fedkd_mpi.common.options import Options
    from fedkd_mpi.common.options import check as check_options
    from fedkd_mpi.datasets.options import OPTIONS
    from fedkd_mpi.datasets.own_options import OWN

    if name not in LOADERS:  # an unknown name is refused when it is loaded
        return dict(options)
    return check_options(
        {**OPTIONS, **OWN}.get(name, Options), options, name, "data", ("name", "root", "augment", "pooled", "pixels")
    )


def load(name: str, root: Path | None, seed: int, options: Mapping[str, Any] | None = None) -> Dataset:
    """Return the data set of that name, or of a user's loader "package.module:function".

    A loader is called as (root, seed, **options); `root` is the parent folder of the data sets. Missing options have
    the defaults of datasets/options.py. Raises UserError if the name is unknown, a file is missing or malformed, or a
    user's loader does not return a valid Dataset; MissingData if the folder of the data set is missing.
    """
    return _call(name, LOADERS, root, seed, check(name, options or {}))


def load_or_stand_in(name: str, root: Path | None, seed: int, options: Mapping[str, Any]) -> Dataset:
    """Return load(), or a made-up stand-in with meta["stand_in"] if the folder of the data set is missing."""
    try:
        return load(name, root, seed, options)
    except MissingData:
        if name not in STAND_INS:
            raise
        dataset = _call(name, STAND_INS, root, seed, check(name, options))
        return replace(dataset, meta={**dataset.meta, "stand_in": True})


def _call(name: str, known: Mapping[str, str], root: Path | None, seed: int, options: Mapping[str, Any]) -> Dataset:
    loader = resolve(name, known, "data.name", function_of("root", "seed"))
    try:
        inspect.signature(loader).bind(root, seed, **options)
    except TypeError as error:
        raise UserError(f"data: {name} does not accept these keys: {error}") from None
    dataset = loader(root, seed, **options)
    if not isinstance(dataset, Dataset):
        raise UserError(f"data.name={name} returned {type(dataset).__name__} instead of fedkd_mpi.datasets.Dataset")
    for part in ("train", "test"):
        lengths = {
            key: len(array) if hasattr(array, "__len__") and np.ndim(array) else 0
            for key, array in getattr(dataset, part).items()
        }
        if len(set(lengths.values())) != 1:
            raise UserError(f"data.name={name}: the {part} arrays differ in length or are missing: {lengths}")
    if name not in known:  # data of other readers; those of this package validate their files
        from fedkd_mpi.datasets.checks import check_dataset

        check_dataset(name, dataset.train, dataset.test, dataset.tables, dataset.meta)
    return dataset


def image_dataset(
    train: dict[str, np.ndarray], test: dict[str, np.ndarray], classes: Sequence[str], scale: float
) -> Dataset:
    """Return a Dataset of images with the mean and standard deviation of its training pixels.

    Both are computed from exact integer sums, so that the result does not depend on the order of summation. A constant
    channel has std 1. Arrays and `scale` are as in Dataset.
    """
    x = train["x"]
    pixels = x.size // x.shape[1]
    totals = x.sum(axis=(0, 2, 3), dtype=np.int64).tolist()
    squares = np.einsum("nchw,nchw->c", x, x, dtype=np.int64).tolist()
    mean = [scale * total / pixels for total in totals]
    variances = [(pixels * square - total**2) / pixels**2 for total, square in zip(totals, squares, strict=True)]
    std = [scale * variance**0.5 or 1.0 for variance in variances]
    return Dataset(train, test, {"classes": list(classes), "scale": scale, "mean": mean, "std": std})


def stand_in(train: int, test: int, shape: Sequence[int], classes: Sequence[str]) -> Dataset:
    """Return images of noise, of `shape` [C, H, W] with the classes in turn; all together take a byte for each.

    They differ, because batches of equal images have no variance, with which BatchNorm's gradients overflow.
    """
    size = int(np.prod(shape))
    noise = np.random.default_rng(0).integers(0, 256, train + test + size, np.uint8)
    # An image is a window of the noise that begins a byte after that of the image before.
    strides = (1, shape[1] * shape[2], shape[2], 1)
    images = np.lib.stride_tricks.as_strided(noise, (train + test, *shape), strides, writeable=False)

    def part(chosen: slice) -> dict[str, np.ndarray]:
        x = images[chosen]
        return {"x": x, "y": np.arange(len(x), dtype=np.int64) % len(classes)}

    meta = {"classes": list(classes), "scale": 1 / 255, "mean": [0.5] * shape[0], "std": [0.25] * shape[0]}
    return Dataset(part(slice(train)), part(slice(train, None)), meta)


def data_folder(root: Path | None, name: str, part: int = 0) -> Path:
    """Return the folder of a data set under root; raise MissingData if no root is set or it cannot be listed."""
    folder = FOLDERS[name][part]
    if root is None:
        raise MissingData(
            f"data.name={name} reads files: set FEDKD_DATA or data.root to the folder that contains {folder}/"
        )
    path = expanded(root) / folder
    try:
        next(path.iterdir(), None)
    except OSError as error:
        raise MissingData(
            f"{path}: {error.strerror}; data.name={name} reads it, so FEDKD_DATA or data.root must name its parent"
        ) from None
    return path


def is_stray(path: Path, folder: Path | None = None) -> bool:
    """Whether a file or folder was created by a desktop, an editor or an archiver and is not part of the data set.

    With `folder`, an ancestor of the path, everything in a stray folder below it is also stray.
    """
    names = path.relative_to(folder).parts if folder else (path.name,)
    return any(name.startswith(".") or name.lower() in STRAY for name in names)


def expanded(path: Path | str) -> Path:
    """Return a path with ~ and $VARIABLES expanded; variables that are not set are kept."""
    changed = Path(os.path.expandvars(path))
    try:
        return changed.expanduser()
    except RuntimeError:  # ~ of an unknown user
        return changed


def read_file(path: Path, size: Callable[[bytes], int] | None = None) -> bytes:
    """Return the bytes of a file, decompressed if its name ends in .gz; raise UserError if that fails.

    `size` returns the expected length from the first bytes of the file; at most one byte more is read.
    """
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise UserError(f"{path}: neither file nor folder; reading it might never end")
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            if size is None:
                return stream.read()
            content = bytearray(stream.read(HEADER))
            most = size(bytes(content)) + 1
            while len(content) < most and (block := stream.read(min(BLOCK, most - len(content)))):
                content += block  # in blocks, because a header may announce more than the file has
            return bytes(content)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: corrupt gzip file ({error}); fetch it again") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def read_lines(path: Path) -> list[str]:
    """Return the lines of a UTF-8 text file; raise UserError naming the first line that is not UTF-8."""
    lines = []
    for number, line in enumerate(read_file(path).splitlines(), 1):
        try:
            lines.append(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError:
            raise UserError(f"{path}: line {number} is not UTF-8 text; fetch it again") from None
    return lines


def check_labels(path: Path, labels: np.ndarray, classes: int) -> None:
    """Raise UserError naming the file and the first record whose label is not in 0..classes-1."""
    wrong = np.flatnonzero(labels >= classes)
    if wrong.size:
        record = int(wrong[0])
        raise UserError(f"{path}: record {record} has label {labels[record]}, but labels are 0..{classes - 1}")
