"""data.name=folder: pictures in one folder per class, path/CLASS/... or path/train/CLASS/... and path/test/CLASS/..."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from fedkd_mpi.datasets import Dataset, is_stray
from fedkd_mpi.datasets.own import PARTS, path_of, plan
from fedkd_mpi.datasets.own_options import FolderOptions
from fedkd_mpi.datasets.pictures import read_alike
from fedkd_mpi.errors import UserError


def load(root: Path | None, seed: int, **keys: Any) -> Dataset:
    """Return pictures as uint8 [n, 3 or 1, height, width]; "id" is a picture's path in the folder. Raises UserError.

    Reads nothing of `root`; `keys` are those of FolderOptions.
    """
    options = FolderOptions(**keys)
    top = path_of(options.path)
    names = [folder.name for folder in _folders(top)]
    levels = [name for name in names if name in PARTS]
    if levels and len(names) > len(levels):
        other = next(name for name in names if name not in PARTS)
        raise UserError(f"{top}: {other!r} stands beside {levels[0]!r}: have train/ and test/ alone, or classes alone")
    if levels == ["test"]:
        raise UserError(f"{top}: has test/ and no train/")
    pictures = {part: _pictures(top / part) for part in sorted(levels, reverse=True)} or {"train": _pictures(top)}
    paths = [path for found in pictures.values() for path, _ in found]
    planned = plan(
        str(top),
        np.array([name for found in pictures.values() for _, name in found]),
        lambda row: str(paths[row]),
        options.test_fraction,
        splits=[part for part, found in pictures.items() for _ in found] if "test" in levels else None,
        ids=[path.relative_to(top).as_posix() for path in paths],
    )
    ordered = [paths[row] for rows in (planned.train, planned.test) for row in rows]
    x = read_alike(ordered, options.size, options.grey)
    return planned.images(x[: len(planned.train)], x[len(planned.train) :], options.standardise)


def _folders(folder: Path) -> list[Path]:
    """Return the folders in a folder, by name; raises UserError where there is none, or a file beside them."""
    try:
        entries = sorted(entry for entry in folder.iterdir() if not is_stray(entry))
    except OSError as error:
        raise UserError(
            f"{folder}: {error.strerror}; data.name=folder reads a folder with a folder per class"
        ) from None
    for entry in entries:
        if not entry.is_dir():
            raise UserError(f"{entry}: stands beside the folders of the classes: remove it, or move it into one")
    if not entries:
        raise UserError(f"{folder}: empty, where a folder with pictures is needed for each class")
    return entries


def _pictures(folder: Path) -> list[tuple[Path, str]]:
    """Return (path, class) of the pictures below the folders of the classes, at any depth."""
    found = []
    for place in _folders(folder):
        inside = [
            Path(base) / name
            for base, folders, names in os.walk(place, onerror=_refuse)
            for name in names
            if not is_stray(Path(base) / name, place)
        ]
        if not inside:
            raise UserError(f"{place}: a class without pictures: remove the folder, or fill it")
        found += [(path, place.name) for path in sorted(inside)]
    return found


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename}: {error.strerror}")
