"""Logs as pandas data frames: the tables of one log, or those of several logs one after another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from fedkd_mpi.common import yaml_loader
from fedkd_mpi.costlog import reader
from fedkd_mpi.errors import UserError

if TYPE_CHECKING:
    import pandas


def frames(path: str | Path, *, run: str | None = None) -> dict[str, pandas.DataFrame]:
    """Return the tables of a log as pandas data frames; bytes are int64, seconds float64.

    The first column of every frame is `run`, by default the name of the file without its suffix. The frame `attrs` has
    one row: the attributes, and every key of the configuration by its dotted name. Columns with a second dimension are
    in separate frames with one row per cell: `mpi`, `uplink_layers`, `downlink_layers` and `label_histogram`. Spectra
    are only in read(). Raises UserError as open() does, and if pandas is not installed.
    """
    library = _pandas()
    log = reader.read(path)
    layers = {"layer": log["layers"]["name"]}
    rounds, uplink = {"round": log["rounds"]["round"]}, {name: log["uplink"][name] for name in ("round", "client")}
    tables: dict[str, Mapping[str, Any]] = {"attrs": _attributes(Path(path), log["attrs"])}
    tables |= {name: _flat(log[name]) for name in log if name not in ("attrs", "mpi")}
    for way, rows in (("uplink", uplink), ("downlink", rounds)):
        by_layer = {name: values for name, values in log[way].items() if name.startswith("layer_")}
        tables[f"{way}_layers"] = _melt(by_layer, rows, layers)
    tables["mpi"] = _melt(log["mpi"], rounds, {"mpi_rank": np.arange(log["mpi"]["bytes_sent"].shape[1])})
    if "label_histogram" in log["clients"]:
        clients, classes = (np.arange(size) for size in log["clients"]["label_histogram"].shape)
        tables["label_histogram"] = _melt(log["clients"], {"client": clients}, {"class": classes})
    name = Path(path).stem if run is None else run
    return {table: _with_run(library.DataFrame(columns), name) for table, columns in tables.items()}


def concat(paths: Sequence[str | Path]) -> dict[str, pandas.DataFrame]:
    """Return the frames of several logs, each table's rows one after another, with one value of `run` per log.

    `run` is the name of the file without its suffix, or its path where two files have the same name. A column that a
    log lacks, e.g. another task's metric, is missing (NaN) in its rows. Raises UserError as frames() does.
    """
    library = _pandas()
    names = [Path(path).stem for path in paths]
    runs = [name if names.count(name) == 1 else str(path) for path, name in zip(paths, names, strict=True)]
    logs = [frames(path, run=run) for path, run in zip(paths, runs, strict=True)]
    tables = dict.fromkeys(table for log in logs for table in log)
    return {table: library.concat([log[table] for log in logs if table in log], ignore_index=True) for table in tables}


def _pandas() -> ModuleType:
    try:
        import pandas
    except ImportError as error:
        raise UserError("data frames need pandas: pip install 'fedkd-mpi[report]'") from error
    return pandas


def _with_run(frame: pandas.DataFrame, run: str) -> pandas.DataFrame:
    frame.insert(0, "run", run)
    return frame


def _attributes(path: Path, attrs: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return attributes and keys of the configuration as columns of one row; an attribute precedes an equal key."""
    config = yaml_loader.parse_mapping(attrs["config"], f"the configuration in {path}")
    cells = dict(_leaves(config)) | {name: value for name, value in attrs.items() if name != "config"}
    return {name: [value] for name, value in cells.items()}


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _flat(table: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: values for name, values in table.items() if values.ndim == 1}


def _melt(
    table: Mapping[str, np.ndarray], rows: Mapping[str, np.ndarray], across: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    (axis, labels), height = next(iter(across.items())), len(next(iter(rows.values())))
    keys = {name: np.repeat(values, len(labels)) for name, values in rows.items()} | {axis: np.tile(labels, height)}
    return keys | {name: values.ravel() for name, values in table.items() if values.ndim == 2}
