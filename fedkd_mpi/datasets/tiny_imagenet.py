"""The unpacked Tiny-ImageNet-200: 200 classes with 500 training and 50 validation pictures of 64x64 pixels.

wnids.txt lists the classes, one per line; train/<wnid>/images/ contains the pictures of a class; val/images/ contains
those in val/val_annotations.txt: file name, class and a box, separated by tabs. The test pictures have no labels
and are not read.
Source: Stanford CS231n, http://cs231n.stanford.edu/tiny-imagenet-200.zip.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedkd_mpi.datasets import Dataset, data_folder, image_dataset, is_stray, read_lines, stand_in
from fedkd_mpi.datasets.pictures import read_pictures
from fedkd_mpi.errors import UserError

SIZE = 64
CLASSES, TRAIN, TEST = 200, 100_000, 10_000


def load_tiny_imagenet(root: Path | None, seed: int) -> Dataset:
    """Return Tiny-ImageNet from root/tiny-imagenet-200, with its validation part as test set; raises UserError.

    There may be fewer classes and pictures than in the official archive.
    """
    folder = data_folder(root, "tiny_imagenet")
    classes = _classes(folder / "wnids.txt")
    train, test = (
        {"x": read_pictures(paths, SIZE, resize=False), "y": np.array(y, np.int64)}
        for paths, y in (_training(folder / "train", classes), _validation(folder / "val", classes))
    )
    return image_dataset(train, test, classes, scale=1 / 255)


def stand_in_tiny_imagenet(root: Path | None, seed: int) -> Dataset:
    """Return 100,000 + 10,000 made-up pictures of the official shape."""
    return stand_in(TRAIN, TEST, (3, SIZE, SIZE), [str(label) for label in range(CLASSES)])


def _classes(path: Path) -> list[str]:
    classes = []
    for number, line in enumerate(read_lines(path), 1):
        name = line.strip()
        if not name or name in classes or "/" in name or name.startswith("."):
            raise UserError(f"{path}: line {number} is {line!r}, not one class that no line before it names")
        classes.append(name)
    if not classes:
        raise UserError(f"{path}: empty, where each line is to name a class")
    return classes


def _training(folder: Path, classes: list[str]) -> tuple[list[Path], list[int]]:
    unknown = sorted(path.name for path in _entries(folder) if path.is_dir() and path.name not in classes)
    if unknown:
        raise UserError(f"{folder / unknown[0]}: a class that wnids.txt does not name")
    paths, labels = [], []
    for label, name in enumerate(classes):
        images = folder / name / "images"
        found = sorted(path for path in _entries(images) if path.suffix.lower() in (".jpeg", ".jpg"))
        if not found:
            raise UserError(f"{images}: no .JPEG files; unpack tiny-imagenet-200.zip again")
        paths += found
        labels += [label] * len(found)
    return paths, labels


def _validation(folder: Path, classes: list[str]) -> tuple[list[Path], list[int]]:
    path = folder / "val_annotations.txt"
    label_of = {name: label for label, name in enumerate(classes)}
    labels: dict[str, int] = {}
    for number, line in enumerate(read_lines(path), 1):
        where = f"{path}: line {number}"
        name, *rest = line.split("\t")
        if len(rest) != 5:
            raise UserError(f"{where} has {1 + len(rest)} fields where file, class and four numbers are due")
        if rest[0] not in label_of:
            raise UserError(f"{where}: class {rest[0]} is not in wnids.txt")
        if name in labels or Path(name).name != name:
            raise UserError(f"{where}: {name!r} is not a file that no line before it names")
        labels[name] = label_of[rest[0]]
    if not labels:
        raise UserError(f"{path}: empty, where each line is to name a picture and its class")
    images = folder / "images"
    bare = sorted(entry.name for entry in _entries(images) if entry.name not in labels)
    if bare:
        raise UserError(f"{images / bare[0]}: no line of val_annotations.txt gives its class")
    return [images / name for name in labels], list(labels.values())


def _entries(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if not is_stray(path)]
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}; unpack tiny-imagenet-200.zip again") from None
