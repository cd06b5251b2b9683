"""Oxford Flowers-102: photographs of 102 kinds of flowers in various sizes, with MATLAB files of labels and splits.

jpg/image_00001.jpg and so on; imagelabels.mat contains `labels`, 1..102 for each picture; setid.mat contains the
numbers of the pictures in three splits, `trnid` (1020), `valid` (1020) and `tstid` (6149).
Source: Nilsback and Zisserman 2008, https://www.robots.ox.ac.uk/~vgg/data/flowers/102/.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from fedkd_mpi.datasets import Dataset, data_folder, image_dataset, read_file, stand_in
from fedkd_mpi.datasets.pictures import read_pictures
from fedkd_mpi.errors import UserError

CLASSES, TRAIN, TEST = 102, 2040, 6149
NAMES = [str(label) for label in range(1, CLASSES + 1)]  # the archive has no names


def load_flowers102(root: Path | None, seed: int, *, size: int) -> Dataset:
    """Return Flowers-102 from root/flowers-102 as squares of `size` pixels; trnid and valid are the training set.

    Raises UserError naming the file that is missing or malformed.
    """
    folder = data_folder(root, "flowers102")
    path = folder / "imagelabels.mat"
    (labels,) = _read_mat(path, ("labels",))
    wrong = np.flatnonzero((labels < 1) | (labels > CLASSES))
    if wrong.size:
        raise UserError(f"{path}: picture {wrong[0] + 1} has label {labels[wrong[0]]}, but labels are 1..{CLASSES}")
    path = folder / "setid.mat"
    splits = dict(zip(("trnid", "valid", "tstid"), _read_mat(path, ("trnid", "valid", "tstid")), strict=True))
    everything = np.concatenate(list(splits.values()))
    for name, numbers in splits.items():
        wrong = numbers[(numbers < 1) | (numbers > len(labels))]
        if wrong.size:
            raise UserError(f"{path}: {name} names picture {wrong[0]}, but imagelabels.mat has 1..{len(labels)}")
    numbers, counts = np.unique(everything, return_counts=True)
    if counts.max() > 1:
        raise UserError(f"{path}: picture {numbers[counts.argmax()]} is in the splits more than once")
    parts: list[dict[str, np.ndarray]] = []
    for chosen in (np.concatenate([splits["trnid"], splits["valid"]]), splits["tstid"]):
        pictures = [folder / "jpg" / f"image_{number:05d}.jpg" for number in chosen]
        parts.append({"x": read_pictures(pictures, size, resize=True), "y": labels[chosen - 1] - 1})
    train, test = parts
    return image_dataset(train, test, NAMES, scale=1 / 255)


def stand_in_flowers102(root: Path | None, seed: int, *, size: int) -> Dataset:
    """Return 2,040 + 6,149 made-up pictures of `size` pixels per side."""
    return stand_in(TRAIN, TEST, (3, size, size), NAMES)


def _read_mat(path: Path, names: tuple[str, ...]) -> list[np.ndarray]:
    """Return variables of a MATLAB file as non-empty int64 vectors."""
    from scipy.io import loadmat

    raw = read_file(path)
    try:
        found = loadmat(io.BytesIO(raw), variable_names=names)
    except Exception as error:  # a damaged file can cause any error, from zlib's to an UnboundLocalError
        text = " ".join(str(error).split())
        raise UserError(f"{path}: not a whole MATLAB file before version 7.3 ({text}); fetch it again") from None
    vectors = []
    for name in names:
        values = np.asarray(found.get(name, ()))
        whole = values.dtype.kind in "iuf" and values.size and max(values.shape) == values.size
        if not whole or not (values == np.floor(values)).all():
            raise UserError(f"{path}: lacks a vector `{name}` of whole numbers")
        vectors.append(values.reshape(-1).astype(np.int64))
    return vectors
