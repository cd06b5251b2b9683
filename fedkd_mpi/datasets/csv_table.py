"""data.name=csv: a table of text lines with a header, a sample a line; read twice, so that nothing is kept twice."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from array import array
from collections.abc import Iterator, Sequence
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from fedkd_mpi.common.machine import require_memory
from fedkd_mpi.datasets import Dataset
from fedkd_mpi.datasets.own import Narrowing, Plan, path_of, plan
from fedkd_mpi.datasets.own_options import CsvOptions
from fedkd_mpi.datasets.tokens import Tokens
from fedkd_mpi.errors import UserError, shown

BLOCK = 4096  # lines whose numbers are parsed at once
TABS = (".tsv", ".tab")
LARGEST = float(np.finfo(np.float32).max)
MARK = "="  # between a column and its value in the name of a feature of 0 and 1


class Table:
    """A table of text lines: its header, and its rows again and again."""

    def __init__(self, path: Path, separator: str | None):
        self.path = path
        stem = path.with_suffix("") if path.suffix == ".gz" else path
        self.separator = separator or ("\t" if stem.suffix.lower() in TABS else ",")
        self.header: list[str] = next(self._lines(), (0, []))[1]
        if not self.header:
            raise UserError(f"{path}: empty, where the first line is to name the columns")
        if twice := next((name for name in self.header if self.header.count(name) > 1), None):
            raise UserError(f"{path}, line 1: column {shown(twice)!r} is named twice: rename one of them")

    def place(self, key: str, name: str) -> int:
        """Return the number of the column that data.<key> names; raises UserError."""
        if name not in self.header:
            there = shown(", ".join(self.header), 200)
            raise UserError(f"{self.path}: data.{key}={shown(name)}, but the columns are {there}")
        return self.header.index(name)

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """Yield (line number, fields) of every row that is not blank; raises UserError naming a line that is odd."""
        lines = self._lines()
        next(lines)
        for number, fields in lines:
            if len(fields) != len(self.header):
                raise UserError(
                    f"{self.path}, line {number}: {len(fields)} fields where the header has {len(self.header)} "
                    f"(separated by {self.separator!r}: data.separator)"
                )
            yield number, fields

    def _lines(self) -> Iterator[tuple[int, list[str]]]:
        if not self.path.is_file():
            raise UserError(f"{self.path}: not a file; data.name=csv reads one table")
        number = 0
        try:
            with gzip.open(self.path) if self.path.suffix == ".gz" else self.path.open("rb") as stream:
                text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
                reader = csv.reader(text, delimiter=self.separator, strict=True)
                for fields in reader:
                    number = reader.line_num
                    if fields:
                        yield number, fields
        except UnicodeDecodeError:
            raise UserError(f"{self.path}: not UTF-8 text after line {number}; save it as UTF-8") from None
        except csv.Error as error:
            raise UserError(f"{self.path}, line {number + 1}: {error}") from None
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(f"{self.path}: corrupt gzip file ({error})") from None
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror})") from None


def load(root: Path | None, seed: int, **keys: Any) -> Dataset:
    """Return a table's rows as texts or as float32 features [n, features]; reads nothing of `root`. Raises UserError.

    `keys` are those of CsvOptions.
    """
    options = CsvOptions(**keys)
    table = Table(path_of(options.path), options.separator)
    named = {
        key: table.place(key, name)
        for key in ("label", "text", "client", "split", "id")
        if (name := getattr(options, key)) is not None
    }
    lines = array("q")
    columns: dict[str, list[str]] = {key: [] for key in named}
    categorical = {table.place("categorical", name): name for name in options.categorical}
    values: dict[int, dict[str, None]] = {column: {} for column in categorical}
    for number, fields in table.rows():
        lines.append(number)
        for key, column in named.items():
            columns[key].append(fields[column])
        for column, found in values.items():
            found[fields[column]] = None
    if not lines:
        raise UserError(f"{table.path}: no row below the header")
    planned = plan(
        str(table.path),
        np.array(columns["label"]),
        lambda row: f"{table.path}, line {lines[row]}",
        options.test_fraction,
        splits=columns.get("split"),
        clients=np.array(columns["client"]) if "client" in columns else None,
        ids=columns.get("id"),
    )
    if "text" in columns:
        tokens = Tokens(options.tokenizer, options.vocabulary, options.length, options.lowercase)
        return planned.texts(columns["text"], tokens)
    chosen = options.features or [name for at, name in enumerate(table.header) if at not in named.values()]
    numeric = [name for name in chosen if name not in options.categorical]
    shares = {column: sorted(found) for column, found in values.items()}
    names = [*numeric, *(f"{categorical[column]}{MARK}{value}" for column in shares for value in shares[column])]
    if not names:
        raise UserError(f"{table.path}: no column is left for the features; it has {shown(', '.join(table.header))}")
    return planned.features(*_features(table, planned, numeric, shares), names, options.standardise)


def _features(
    table: Table, planned: Plan, numeric: Sequence[str], shares: dict[int, list[str]]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the features of the training and of the test part, float32 [n, features]."""
    places = [table.place("features", name) for name in numeric]
    width = len(places) + sum(map(len, shares.values()))
    count = len(planned.train) + len(planned.test)
    require_memory(f"{table.path}: {count} rows of {width} features", 4 * count * width, "name fewer features")
    parts = tuple(np.zeros((len(rows), width), np.float32) for rows in (planned.train, planned.test))
    part, at = np.zeros(count, np.int64), np.empty(count, np.int64)
    part[planned.test] = 1
    for rows in (planned.train, planned.test):
        at[rows] = np.arange(len(rows))
    row, narrow = 0, Narrowing()
    for block in _blocks(table):
        if row + len(block) > count:
            raise UserError(f"{table.path}: grew while it was read; start again when it is complete")
        numbers = np.zeros((len(block), width), np.float32)
        if places:
            numbers[:, : len(places)] = narrow(_numbers(table, block, places))
        first = len(places)
        for column, found in shares.items():
            codes = np.searchsorted(found, [fields[column] for _, fields in block])
            numbers[np.arange(len(block)), first + codes] = 1
            first += len(found)
        for side in (0, 1):
            here = np.flatnonzero(part[row : row + len(block)] == side)
            parts[side][at[row + here]] = numbers[here]
        row += len(block)
    narrow.require(str(table.path), numeric)
    return parts[0], parts[1]


def _blocks(table: Table) -> Iterator[list[tuple[int, list[str]]]]:
    block: list[tuple[int, list[str]]] = []
    for line in table.rows():
        block.append(line)
        if len(block) == BLOCK:
            yield block
            block = []
    if block:
        yield block


def _numbers(table: Table, block: list[tuple[int, list[str]]], places: Sequence[int]) -> np.ndarray:
    """Return the numbers of columns as float64 [lines, columns]; raises UserError naming the cell that is none."""
    chosen = itemgetter(*places, places[0])  # of one place alone it would give no tuple
    cells = [chosen(fields)[:-1] for _, fields in block]
    try:
        numbers = np.fromiter(map(float, chain.from_iterable(cells)), np.float64, len(block) * len(places))
        if (np.abs(numbers) <= LARGEST).all():
            return numbers.reshape(len(block), len(places))
    except ValueError:  # which cell it is, is found below
        pass
    for (line, _), row in zip(block, cells, strict=True):
        for place, cell in zip(places, row, strict=True):
            if not _is_number(cell):
                raise UserError(
                    f"{table.path}, line {line}: column {shown(table.header[place])!r} has {shown(cell)!r}, no finite "
                    "number: fill it in, leave the row out, or name the column in data.categorical (or leave it out of "
                    "data.features)"
                )
    raise AssertionError("every cell is a number")


def _is_number(cell: str) -> bool:
    try:
        return abs(float(cell)) <= LARGEST
    except ValueError:
        return False
