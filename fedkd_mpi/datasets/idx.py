"""The IDX format of MNIST and Fashion-MNIST, gzipped or not.

An IDX file is two zero bytes, a type byte (8: unsigned byte), the number of dimensions, each dimension as a
big-endian 32-bit integer, and the values in C order (LeCun, Cortes and Burges, "The MNIST database").
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from fedkd_mpi.datasets import Dataset, check_labels, data_folder, image_dataset, read_file, stand_in
from fedkd_mpi.errors import UserError

UNSIGNED_BYTE = 8
DIGITS = [str(digit) for digit in range(10)]
GARMENTS = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]


def load_mnist(root: Path | None, seed: int) -> Dataset:
    """Return MNIST from root/mnist; raises UserError. Source: LeCun et al. 1998."""
    return _load("mnist", data_folder(root, "mnist"), DIGITS)


def load_fashion_mnist(root: Path | None, seed: int) -> Dataset:
    """Return Fashion-MNIST from root/fashion-mnist; raises UserError. Source: Xiao et al. 2017, arXiv:1708.07747."""
    return _load("fashion_mnist", data_folder(root, "fashion_mnist"), GARMENTS)


def stand_in_mnist(root: Path | None, seed: int) -> Dataset:
    """Return 60,000 + 10,000 images of the official shape."""
    return stand_in(60_000, 10_000, (1, 28, 28), DIGITS)


def stand_in_fashion_mnist(root: Path | None, seed: int) -> Dataset:
    """Return 60,000 + 10,000 images of the official shape."""
    return stand_in(60_000, 10_000, (1, 28, 28), GARMENTS)


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Return the uint8 array of an IDX file with the given number of dimensions, none of which is 0.

    Raises UserError naming the file if its header or its length is invalid.
    """
    start = 4 + 4 * dimensions
    raw = read_file(path, lambda head: start + _size(head, dimensions))
    if len(raw) < start:
        raise UserError(f"{path}: {len(raw)} bytes are too few for an IDX header of {start} bytes; fetch it again")
    if raw[:2] != b"\0\0":
        raise UserError(f"{path}: not an IDX file: it starts with {raw[:4].hex(' ')}, not with two zero bytes")
    if raw[2] != UNSIGNED_BYTE:
        raise UserError(f"{path}: IDX values of type 0x{raw[2]:02x}; only unsigned bytes (0x08) are read")
    if raw[3] != dimensions:
        raise UserError(f"{path}: IDX array of {raw[3]} dimensions where {dimensions} are expected")
    shape = np.frombuffer(raw, ">u4", dimensions, offset=4).tolist()
    if 0 in shape:
        raise UserError(f"{path}: an empty IDX array, {shape}")
    expected = start + _size(raw, dimensions)
    if len(raw) != expected:
        fault = f"truncated: {len(raw)} bytes" if len(raw) < expected else f"too long: {len(raw)} bytes or more"
        raise UserError(f"{path}: {fault} where its header {shape} says {expected}; fetch it again")
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape).copy()


def _size(head: bytes, dimensions: int) -> int:
    """Return the number of bytes of values that a header announces, 0 if the header is invalid."""
    return math.prod(np.frombuffer(head[4 : 4 + 4 * dimensions].ljust(4 * dimensions, b"\0"), ">u4").tolist())


def _load(name: str, folder: Path, classes: list[str]) -> Dataset:
    train, test = (_read_pair(folder, part, len(classes)) for part in ("train", "t10k"))
    if train["x"].shape[1:] != test["x"].shape[1:]:
        sizes = [" x ".join(map(str, part["x"].shape[2:])) for part in (train, test)]
        raise UserError(f"{folder}: {name} has training images of {sizes[0]} pixels but test images of {sizes[1]}")
    return image_dataset(train, test, classes, scale=1 / 255)


def _read_pair(folder: Path, part: str, classes: int) -> dict[str, np.ndarray]:
    images_path, labels_path = _find(folder, f"{part}-images-idx3-ubyte"), _find(folder, f"{part}-labels-idx1-ubyte")
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    if len(images) != len(labels):
        raise UserError(f"{labels_path}: {len(labels)} labels for the {len(images)} images of {images_path.name}")
    check_labels(labels_path, labels, classes)
    return {"x": images[:, np.newaxis], "y": labels.astype(np.int64)}


def _find(folder: Path, name: str) -> Path:
    zipped = folder / f"{name}.gz"
    dotted = name.replace("-idx", ".idx")  # the name that some unpackers use
    for path in (folder / name, zipped, folder / dotted, folder / f"{dotted}.gz"):
        if path.exists():
            return path
    raise UserError(f"{zipped}: no such file, nor one without .gz; fetch it into that folder")
