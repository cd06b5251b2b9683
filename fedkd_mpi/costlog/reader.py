"""Reads a cost log: after the run, while it goes on, and after kill -9, always cut to the completed rounds."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from fedkd_mpi.costlog import files, schema
from fedkd_mpi.errors import UserError

if TYPE_CHECKING:
    import pandas


class Table(Mapping[str, np.ndarray]):
    """One table of a log: column name -> NumPy array with the rows first, read from the file when asked for.

    Text comes as str. Raises UserError where the file is damaged.
    """

    def __init__(self, path: Path, group: h5py.Group, columns: Mapping[str, schema.Column], select: Any):
        self._path, self._group, self._columns, self._select = path, group, columns, select

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._columns:
            raise KeyError(f"no column {name}: this table has {', '.join(self._columns)}")
        values = _values(self._path, self._group[name])[self._select]
        return np.char.decode(values, "utf-8", "replace") if values.dtype.kind == "S" else values

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)


class Log(Mapping[str, Table]):
    """An open log: table name -> Table, as it stood when it was opened.

    `attrs` are the attributes of the file; `rounds_completed` is the number of rounds that every table is cut to.
    Events are not cut: those of a round that failed are the last word of the run.
    """

    def __init__(self, path: Path, rounds: int | None):
        self.path = path
        self._file = files.open_read(path)
        try:
            self._load(rounds)
            if self._file.swmr_mode:  # being written right now: what is read later could be newer than what was opened
                self._tables = {name: dict(table) for name, table in self._tables.items()}
        except BaseException:
            self.close()
            raise

    def _load(self, rounds: int | None) -> None:
        self.attrs = _attrs(self.path, self._file)
        declared = schema.FIXED | schema.growing(self.attrs["metrics"])
        columns = {table: self._present(table, names) for table, names in declared.items()}
        of_round, of_event = self._numbers("rounds"), self._numbers("events")

        done = of_round[: np.append(of_round < 0, True).argmax()]
        if (np.diff(done) != 1).any():
            raise UserError(f"{self.path} is damaged: its rounds do not follow one another")
        if rounds is not None and rounds > len(done):
            raise UserError(
                f"{self.path} holds {len(done)} completed rounds, not {rounds}: it is not the log of this run"
            )
        done = done[:rounds]
        last = done[-1] if len(done) else -1
        self.rounds_completed = len(done)

        select: dict[str, Any] = dict.fromkeys(columns, slice(None))
        select |= dict.fromkeys(("rounds", "downlink", "mpi"), slice(len(done)))
        # Row numbers, not masks: the columns of a round that is being written differ in length.
        for table in ("uplink", "training"):
            of_client = self._numbers(table)
            select[table] = np.flatnonzero((of_client >= 0) & (of_client <= last))
        select["events"] = np.flatnonzero((of_event >= 0) & (rounds is None or of_event <= last))
        self._tables = {
            table: Table(self.path, self._file[table], names, select[table]) for table, names in columns.items()
        }

    def _present(self, table: str, columns: Mapping[str, schema.Column]) -> dict[str, schema.Column]:
        present = {}
        for name, column in columns.items():
            dataset = self._file.get(f"{table}/{name}")
            if dataset is None and (table, name) in schema.OPTIONAL:
                continue
            expected = np.dtype(column.dtype).kind, 2 if column.axis else 1
            if not isinstance(dataset, h5py.Dataset) or (dataset.dtype.kind, dataset.ndim) != expected:
                raise UserError(f"{self.path} is damaged: {table}/{name} is missing or of another type")
            present[name] = column
        return present

    def _numbers(self, table: str) -> np.ndarray:
        return _values(self.path, self._file[table]["round"])

    def __getitem__(self, table: str) -> Table:
        return self._tables[table]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tables)

    def __len__(self) -> int:
        return len(self._tables)

    def close(self) -> None:
        """Close the file; arrays that were read stay."""
        self._file.close()

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open(path: str | Path, rounds: int | None = None) -> Log:
    """Open a log of any status, cut to its first `rounds` rounds or else to all that were completed.

    To follow a run that goes on, open its log again. Raises UserError, one line, where the file is missing, foreign,
    damaged, of another schema_version, or holds fewer than `rounds` rounds.
    """
    path = Path(path)
    while True:
        try:
            return Log(path, rounds)
        except UserError:
            # HDF5 does not find rows that were appended while it opened the file; a moment later it does.
            if not files.just_written(path):
                raise
            time.sleep(0.02)


def read(path: str | Path) -> dict[str, dict[str, Any]]:
    """Return a whole log as {"attrs": {...}, "rounds": {"round": array, ...}, ...}, bytes int64 and seconds float64.

    Raises UserError as `open` does.
    """
    with open(path) as log:
        return {"attrs": log.attrs} | {name: dict(table) for name, table in log.items()}


def frames(path: str | Path) -> dict[str, pandas.DataFrame]:
    """Return the tables of a log as pandas frames, bytes int64 and seconds float64.

    Columns with a second dimension are in frames of their own, one line a cell: `mpi`, `uplink_layers`,
    `downlink_layers` and `label_histogram`; spectra are in `read` alone. Raises UserError as `open` does, or where
    pandas is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise UserError("data frames need pandas: pip install 'fedkd-mpi[report]'") from error
    log = read(path)
    layers = {"layer": log["layers"]["name"]}
    rounds, uplink = {"round": log["rounds"]["round"]}, {name: log["uplink"][name] for name in ("round", "client")}
    tables = {name: _flat(log[name]) for name in ("layers", "clients", "rounds", "uplink", "downlink", "training")}
    for way, rows in (("uplink", uplink), ("downlink", rounds)):
        by_layer = {name: values for name, values in log[way].items() if name.startswith("layer_")}
        tables[f"{way}_layers"] = _melt(by_layer, rows, layers)
    tables["mpi"] = _melt(log["mpi"], rounds, {"mpi_rank": np.arange(log["mpi"]["bytes_sent"].shape[1])})
    tables["events"] = log["events"]
    if "label_histogram" in log["clients"]:
        clients, classes = (np.arange(size) for size in log["clients"]["label_histogram"].shape)
        tables["label_histogram"] = _melt(log["clients"], {"client": clients}, {"class": classes})
    return {name: pandas.DataFrame(columns) for name, columns in tables.items()}


def _flat(table: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: values for name, values in table.items() if values.ndim == 1}


def _melt(table: Mapping[str, np.ndarray], rows: Mapping[str, np.ndarray], across: Mapping[str, np.ndarray]) -> dict:
    (axis, labels), height = next(iter(across.items())), len(next(iter(rows.values())))
    keys = {name: np.repeat(values, len(labels)) for name, values in rows.items()} | {axis: np.tile(labels, height)}
    return keys | {name: values.ravel() for name, values in table.items() if values.ndim == 2}


def _attrs(path: Path, file: h5py.File) -> dict[str, Any]:
    try:
        attrs = {name: value.tolist() if hasattr(value, "tolist") else value for name, value in file.attrs.items()}
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path} is damaged: {files.reason(error)}") from error
    version = attrs.get("schema_version")
    if version is None:
        raise UserError(f"{path} is not a cost log of fedkd_mpi: it has no schema_version")
    if version != schema.SCHEMA_VERSION:
        raise UserError(f"{path} has schema_version {version}, this fedkd_mpi reads {schema.SCHEMA_VERSION}")
    if missing := [name for name in schema.ATTRS if name not in attrs]:
        raise UserError(f"{path} is damaged: it has no attribute {', '.join(missing)}")
    return attrs


def _values(path: Path, dataset: h5py.Dataset) -> np.ndarray:
    try:
        # The rows were counted first: refreshed, a column has at least as many.
        dataset.refresh()
        return dataset[()]
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path} is damaged: {dataset.name[1:]} cannot be read") from error
