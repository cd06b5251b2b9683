"""data.name=hf: a local folder that the Hugging Face datasets library wrote with save_to_disk()."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedkd_mpi.common.machine import require_memory
from fedkd_mpi.datasets import Dataset
from fedkd_mpi.datasets.own import PARTS, Narrowing, Plan, finite, path_of, plan
from fedkd_mpi.datasets.own_options import HfOptions
from fedkd_mpi.datasets.pictures import Encoded, Source, read_alike
from fedkd_mpi.datasets.tokens import Tokens
from fedkd_mpi.errors import LONGEST_LINE, UserError, shown

if TYPE_CHECKING:
    import datasets

COPIES = 3  # of the features: in blocks, together, and divided into training and test part
BLOCK = 4096  # rows that are read at once
UNLABELLED = -1  # of a ClassLabel, where the class is not given
NAMED = ("label", "text", "image", "client", "split", "id")  # keys of data that name a column


class Parts:
    """The splits train and test of a saved folder, one after the other, as one table; test may not be there."""

    def __init__(self, path: Path):
        self.path = path
        library = _library()
        try:
            saved = library.load_from_disk(str(path), keep_in_memory=False)
        except Exception as error:  # a damaged folder ends in any error, from JSON's to Arrow's
            text = shown(" ".join(str(error).split()), LONGEST_LINE)
            raise UserError(f"{path}: not a folder of datasets.save_to_disk ({text}); save it again") from None
        if isinstance(saved, library.Dataset):
            saved = {"train": saved}
        if "train" not in saved:
            raise UserError(f"{path}: has no split train, but {shown(', '.join(saved))}")
        self.tables: list[datasets.Dataset] = [saved[part].with_format(None) for part in PARTS if part in saved]
        self.sizes = [len(table) for table in self.tables]
        self.features = self.tables[0].features
        if not all(self.sizes):
            raise UserError(f"{path}: split {PARTS[self.sizes.index(0)]} is empty")
        if any(table.features.keys() != self.features.keys() for table in self.tables):
            raise UserError(f"{path}: the splits train and test differ in their columns")

    @property
    def splits(self) -> list[str] | None:
        """Return the part of every row, None where there is but one split."""
        return np.repeat(PARTS, self.sizes).tolist() if len(self.tables) > 1 else None

    def where(self, row: int) -> str:
        """Return a row as messages name it."""
        part = int(row >= self.sizes[0])
        return f"{self.path}: {PARTS[part]}[{row - part * self.sizes[0]}]"

    def require(self, key: str, name: str) -> str:
        """Return the name of a column that is there; raises UserError."""
        if name not in self.features:
            raise UserError(
                f"{self.path}: data.{key}={shown(name)}, but the columns are {shown(', '.join(self.features), 200)}"
            )
        return name

    def column(self, name: str) -> list[Any]:
        """Return a column of all rows as Python values; raises UserError where it cannot be read."""
        try:
            return [value for table in self.tables for value in table[name][:]]
        except Exception as error:  # Arrow's, of a file that was cut off
            raise UserError(f"{self.path}: column {shown(name)!r} cannot be read ({error}); save it again") from None

    def texts(self, name: str) -> list[str]:
        """Return a column of texts; raises UserError naming the first row that holds something else."""
        values = self.column(name)
        for row, value in enumerate(values):
            if not isinstance(value, str):
                raise UserError(f"{self.where(row)}: {shown(name)!r} is {shown(value)}, expected a text")
        return values

    def names(self, name: str) -> np.ndarray:
        """Return a column of whole numbers or texts; raises UserError naming the first row that holds neither."""
        values = self.column(name)
        for row, value in enumerate(values):
            if not isinstance(value, str | int) or (value == UNLABELLED and self.class_names(name)):
                raise UserError(
                    f"{self.where(row)}: {shown(name)!r} is {shown(value)}, expected a class: a whole number or a text"
                )
        return np.array(values)

    def class_names(self, name: str) -> list[str] | None:
        """Return the names that a column's numbers stand for (ClassLabel), None where they stand for none."""
        return getattr(self.features[name], "names", None)


def load(root: Path | None, seed: int, **keys: Any) -> Dataset:
    """Return a saved folder's rows as pictures, texts or features; reads nothing of `root`. Raises UserError.

    `keys` are those of HfOptions.
    """
    options = HfOptions(**keys)
    parts = Parts(path_of(options.path))
    columns = {key: parts.require(key, name) for key in NAMED if (name := getattr(options, key)) is not None}
    splits = parts.texts(columns["split"]) if "split" in columns else parts.splits
    planned = plan(
        str(parts.path),
        parts.names(columns["label"]),
        parts.where,
        options.test_fraction,
        splits=splits,
        clients=parts.names(columns["client"]) if "client" in columns else None,
        ids=[str(name) for name in parts.names(columns["id"])] if "id" in columns else None,
    )
    for key, column in (("classes", "label"), ("clients", "client")):
        if column in columns and (names := parts.class_names(columns[column])):
            planned.meta[key] = [names[int(number)] for number in planned.meta[key]]
    if "text" in columns:
        tokens = Tokens(options.tokenizer, options.vocabulary, options.length, options.lowercase)
        return planned.texts(parts.texts(columns["text"]), tokens)
    if "image" in columns:
        x = read_alike(_pictures(parts, planned, columns["image"]), options.size, options.grey)
        return planned.images(x[: len(planned.train)], x[len(planned.train) :], options.standardise)
    chosen = options.features or [name for name in parts.features if name not in columns.values()]
    if not chosen:
        raise UserError(f"{parts.path}: no column is left for the features; it has {shown(', '.join(parts.features))}")
    x, names = _features(parts, [parts.require("features", name) for name in chosen])
    return planned.features(x[planned.train], x[planned.test], names, options.standardise)


def _pictures(parts: Parts, planned: Plan, name: str) -> list[Source]:
    """Return the pictures of a column as they are stored, those of the training part first; raises UserError."""
    image = _library().Image
    if not isinstance(parts.features[name], image):
        raise UserError(f"{parts.path}: column {shown(name)!r} is no column of pictures (datasets.Image)")
    stored = sum(table.data.nbytes for table in parts.tables)
    require_memory(f"{parts.path}: its pictures", stored, "take a smaller part of it")
    found = [value for table in parts.tables for value in table.cast_column(name, image(decode=False))[name][:]]
    sources: list[Source] = []
    for row in (*planned.train, *planned.test):
        value = found[row] or {}
        if not value.get("bytes") and not value.get("path"):
            raise UserError(f"{parts.where(row)}: there is no picture: leave the row out")
        sources.append(Encoded(parts.where(row), value["bytes"]) if value.get("bytes") else Path(value["path"]))
    return sources


def _features(parts: Parts, chosen: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Return columns of numbers, or of lists of as many numbers, as float32 [n, features], and the features' names."""
    blocks: list[np.ndarray] = []
    widths: list[int] = []
    row, narrow = 0, Narrowing()
    for table in parts.tables:
        numbers = table.select_columns(list(chosen)).with_format("numpy")
        for at in range(0, len(table), BLOCK):
            block = numbers[at : at + BLOCK]
            columns = [_numbers(parts, row, name, block[name]) for name in chosen]
            if not widths:
                widths = [column.shape[1] for column in columns]
                width = sum(widths)
                count = sum(parts.sizes)
                what = f"{parts.path}: {count} rows of {width} features"
                require_memory(what, COPIES * 4 * count * width, "name fewer features")
            for name, column, due in zip(chosen, columns, widths, strict=True):
                if column.shape[1] != due:
                    raise UserError(f"{parts.where(row)}: {shown(name)!r} has {column.shape[1]} numbers, not {due}")
            blocks.append(narrow(np.concatenate(columns, axis=1)))
            row += len(columns[0])
    names = [
        name if width == 1 else f"{name}[{place}]"
        for name, width in zip(chosen, widths, strict=True)
        for place in range(width)
    ]
    narrow.require(str(parts.path), names)
    return np.concatenate(blocks), names


def _numbers(parts: Parts, first: int, name: str, values: np.ndarray) -> np.ndarray:
    """Return a block of a column from row `first` on as float64 [rows, numbers]; raises UserError."""
    if values.dtype.kind not in "biuf" or values.ndim > 2:
        raise UserError(
            f"{parts.where(first)}: column {shown(name)!r} holds {values.dtype} {list(values.shape[1:])}, expected "
            "numbers or lists of as many numbers: name others in data.features"
        )
    column = values.reshape(len(values), -1).astype(np.float64)
    with np.errstate(over="ignore"):
        finite(column.astype(np.float32), lambda at: f"{parts.where(first + at[0])}: {shown(name)!r}")
    return column


def _library() -> Any:
    """Return the datasets library, told to ask nothing of a network; raises UserError where it is not installed."""
    os.environ["HF_DATASETS_OFFLINE"] = os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"data.name=hf needs the datasets library ({error}): pip install 'fedkd-mpi[hf]'") from None
    datasets.disable_progress_bars()
    return datasets
