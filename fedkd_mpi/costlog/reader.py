"""Reads a cost log during a run, after it, and after kill -9, always cut to the completed rounds."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedkd_mpi.costlog import checks, door, files, schema
from fedkd_mpi.costlog.column import Column
from fedkd_mpi.errors import UserError

ATTEMPTS, PAUSE = 100, 0.03  # seconds between two attempts to open a log that is being written


class _Source:
    """The datasets of an open file, by "table/column"."""

    def __init__(self, path: Path):
        self.path, self.file = path, files.open_read(path)

    def values(self, name: str, select: slice | np.ndarray) -> np.ndarray:
        """Return the selected rows of a dataset "table/column", unconverted."""
        with door.reading(self.path, name):
            dataset = self.file[name]
            if self.file.swmr_mode:  # rows were counted before; after a refresh a column has at least as many
                dataset.refresh()
            if isinstance(select, slice):
                return dataset[select]
            return dataset[: int(select[-1]) + 1][select] if len(select) else dataset[:0]


class Table(Mapping[str, np.ndarray]):
    """One table of a log: column name -> NumPy array with rows first, read from the file on access.

    Text is returned as str. Raises UserError if the file is damaged.
    """

    def __init__(
        self,
        source: _Source,
        name: str,
        columns: Mapping[str, Column],
        select: slice | np.ndarray,
        attrs: Mapping[str, Any],
    ):
        self._source, self._name, self._columns, self._select = source, name, columns, select
        self._attrs = attrs

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._columns:
            raise KeyError(f"no column {name}: this table has {', '.join(self._columns)}")
        full, path = f"{self._name}/{name}", self._source.path
        values = self._source.values(full, self._select)
        if values.dtype.kind == "S":
            return door.text(path, full, values)
        door.require_values(path, full, self._columns[name], values, self._attrs)
        return values

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)


class Log(Mapping[str, Mapping[str, np.ndarray]]):
    """An open log: table name -> Table, in the state at the time of opening.

    `attrs` are the attributes of the file. `rounds_completed` is the number of rounds to which every table is cut.
    Events are not cut, so that the events of a failed round are included.
    """

    def __init__(self, path: Path, rounds: int | None, sums: bool):
        self.path = path
        self._source = _Source(path)
        self._tables: dict[str, Mapping[str, np.ndarray]] = {}
        self._file = self._source.file
        try:
            with door.reading(path, "its content"):
                self._load(rounds)
                if sums:
                    door.require_sums(path, self)
                if self._file.swmr_mode:  # the file is being written: values that are read later could be newer
                    self._tables = {name: dict(table) for name, table in self._tables.items()}
        except BaseException:
            self.close()
            raise

    def _load(self, rounds: int | None) -> None:
        self.attrs = door.read_attrs(self.path, self._file)
        declared = schema.FIXED | schema.growing(self.attrs["metrics"])
        missing = schema.SINCE if self.attrs["schema_version"] < schema.SINCE_VERSION else ()
        there = {table: names for table, names in declared.items() if table not in missing}
        columns = door.find_columns(self.path, self._file, there)
        door.require_lengths(self.path, self._file, columns, self.attrs)
        of_round, of_event = (self._source.values(f"{table}/round", slice(None)) for table in ("rounds", "events"))

        done = of_round[: np.append(of_round < 0, True).argmax()]
        if (np.diff(done) != 1).any() or (done > door.MOST).any():
            raise UserError(f"{self.path} is damaged: its rounds are not consecutive")
        if rounds is not None and rounds > len(done):
            raise UserError(
                f"{self.path} contains {len(done)} completed rounds, not {rounds}: it is not the log of this run"
            )
        done = done[:rounds]
        first, last = (done[0], done[-1]) if len(done) else (0, -1)
        self.rounds_completed = len(done)

        select: dict[str, Any] = dict.fromkeys(columns, slice(None))
        select |= dict.fromkeys(("rounds", "downlink", "mpi"), slice(len(done)))
        # Row numbers instead of masks, because the columns of a round that is being written differ in length.
        for table in ("uplink", "training"):
            of_client = self._source.values(f"{table}/round", slice(None))
            select[table] = np.flatnonzero((of_client >= 0) & (of_client <= last))
            if (of_client[select[table]] < first).any() or (np.diff(of_client[select[table]]) < 0).any():
                raise UserError(f"{self.path} is damaged: {table}/round is not in the order of the rounds")
        select["events"] = np.flatnonzero((of_event >= 0) & (rounds is None or of_event <= last))
        for table in schema.GROWING:
            rows = select[table]
            need = rows.stop if isinstance(rows, slice) else int(rows[-1]) + 1 if len(rows) else 0
            door.require_rows(self.path, table, self._file, columns[table], need)
        self._tables = {
            table: checks.fixed(table, None)
            if table in missing
            else Table(self._source, table, columns[table], select[table], self.attrs)
            for table in declared
        }
        spectrum = self._file["uplink/spectrum"].shape if "spectrum" in columns["uplink"] else None
        door.require_layers(self.path, self._tables["layers"], spectrum)

    def __getitem__(self, table: str) -> Mapping[str, np.ndarray]:
        return self._tables[table]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tables)

    def __len__(self) -> int:
        return len(self._tables)

    def check(self) -> None:
        """Read every column once; raises UserError naming the first column with invalid values."""
        for table in self._tables.values():
            for name in table:
                table[name]

    def close(self) -> None:
        """Close the file; arrays that were read remain valid."""
        self._file.close()

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open(path: str | Path, rounds: int | None = None, *, sums: bool = True) -> Log:
    """Open a log of any status, cut to its first `rounds` rounds, by default to all completed rounds.

    To follow a running run, open its log again with sums=False, which omits the check of the sums of bytes. Raises
    UserError if the file is missing, not a log, damaged, of an unknown schema_version, or has fewer rounds than asked.
    """
    path = Path(path)
    known = None
    # HDF5 may miss rows that are appended while it opens the file; a later attempt finds them. File times are compared
    # with each other and not with this machine's clock, because a file server has its own clock.
    for _ in range(ATTEMPTS):
        before = files.state(path)
        try:
            return Log(path, rounds, sums)
        except UserError:
            if not files.is_open(path) or before == files.state(path) == known:
                raise
        known = files.state(path)
        time.sleep(PAUSE)
    return Log(path, rounds, sums)


def read(path: str | Path) -> dict[str, dict[str, Any]]:
    """Return a log as {"attrs": {...}, "rounds": {"round": array, ...}, ...}; bytes are int64, seconds float64.

    Raises UserError as open() does.
    """
    with open(path) as log:
        return {"attrs": log.attrs} | {name: dict(table) for name, table in log.items()}
