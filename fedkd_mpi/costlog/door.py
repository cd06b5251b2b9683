"""Validation of a log: its content is checked against the schema before use.

A log may come from any person and any disk. Type, length and size of every dataset are checked before it is read or
memory is allocated for it. Links out of the file are refused, and nothing in the file is executed.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5z

from fedkd_mpi.costlog import checks, files, schema
from fedkd_mpi.costlog.column import Column
from fedkd_mpi.errors import UserError

Columns = dict[str, Column]

# Uncompressed data are not larger than the file; a killed writer may have announced one more round.
SLACK = 2**20
# Data that were compressed later (h5repack) may be larger than the file, within the memory of any machine.
UNPACKED, UNPACKED_FACTOR = 2**28, 16
FILTERS = {h5z.FILTER_DEFLATE, h5z.FILTER_SHUFFLE, h5z.FILTER_FLETCHER32}
LONGEST_NAME = 2**16  # bytes of a text in a column
MOST = 2**60  # integers above it are invalid
INTEGERS = {"schema_version": -MOST, "world_size": 1, "num_clients": 0, "seed": 0}  # attribute -> smallest value
LISTS = ("metrics", "lower_is_better", "hostnames", "data")
SHAPE = re.compile(r"scalar|\d{1,18}(x\d{1,18}){0,31}", re.ASCII)


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Convert all errors of HDF5 inside the block to a UserError of one line: `what` cannot be read."""
    try:
        yield
    except UserError:
        raise
    except (OSError, RuntimeError, LookupError, ValueError, TypeError, ArithmeticError, MemoryError) as error:
        raise damaged(path, f"{what} cannot be read ({files.reason(error)})") from error


def damaged(path: Path, what: str) -> UserError:
    """Return the UserError for a damaged log."""
    return UserError(f"{path} is damaged: {what}")


def read_attrs(path: Path, file: h5py.File) -> dict[str, Any]:
    """Return the attributes in schema.ATTRS; raises UserError if one is missing or of another type."""
    attrs: dict[str, Any] = {}
    for name in schema.ATTRS:
        with reading(path, f"the attribute {name}"):
            value = _attribute(path, file, name)
        if name == "schema_version" and value is None:
            raise UserError(f"{path} is not a cost log of fedkd_mpi: it has no schema_version")
        if value is None and name in schema.ATTRS_SINCE and attrs["schema_version"] < schema.SINCE_VERSION:
            value = schema.ATTRS_SINCE[name]
        if value is None:
            raise damaged(path, f"the attribute {name} is missing")
        attrs[name] = _checked(path, name, value)
        if name == "schema_version" and value not in schema.READABLE:
            reads = f"{', '.join(map(str, schema.READABLE[:-1]))} and {schema.READABLE[-1]}"
            raise UserError(f"{path} has schema_version {value}, but this fedkd_mpi reads {reads}")
    if attrs["status"] not in schema.STATUSES:
        raise damaged(path, f"the attribute status is {attrs['status']!r}, not {' or '.join(schema.STATUSES)}")
    metrics = attrs["metrics"]
    if len(set(metrics)) < len(metrics) or not all(schema.is_metric(metric) for metric in metrics):
        raise damaged(path, f"the attribute metrics contains {metrics!r}, which cannot be column names")
    return attrs


def _attribute(path: Path, file: h5py.File, name: str) -> Any:
    if not h5a.exists(file.id, name.encode()):
        return None
    attribute = h5a.open(file.id, name.encode())
    size = attribute.get_space().get_simple_extent_npoints() * attribute.get_type().get_size()
    if size > files.size(path):
        raise ValueError(f"it announces {size} bytes")
    value = file.attrs[name]
    return value.tolist() if hasattr(value, "tolist") else value


def _checked(path: Path, name: str, value: Any) -> Any:
    if name in INTEGERS:
        good = isinstance(value, int) and not isinstance(value, bool) and value >= INTEGERS[name]
    elif name in LISTS:
        good = isinstance(value, list) and all(_is_text(each) for each in value)
    else:
        good = _is_text(value)
    if not good:
        kind = "a number" if name in INTEGERS else "a list of texts" if name in LISTS else "UTF-8 text"
        raise damaged(path, f"the attribute {name} is not {kind}" + (f": {value}" if isinstance(value, int) else ""))
    return value


def _is_text(value: Any) -> bool:
    """Whether a value is a str from valid UTF-8; h5py converts invalid bytes to surrogates."""
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


def agrees(attrs: Mapping[str, Any]) -> bool:
    """Whether the configuration in a log has the logged digest."""
    return digest(attrs["config"]) == attrs["config_digest"]


def digest(config: str) -> str:
    """Return the SHA-256 of the text of a configuration, as hexadecimal text."""
    return hashlib.sha256(config.encode()).hexdigest()


def find_columns(path: Path, file: h5py.File, declared: Mapping[str, Columns]) -> dict[str, Columns]:
    """Return the columns of `declared` that each table of a log has, without optional columns that are missing.

    Raises UserError naming the dataset if it is missing, linked from outside, or larger than the file permits.
    """
    found: dict[str, Columns] = {}
    unpacked, size = 0, files.size(path)
    for table, columns in declared.items():
        with reading(path, table):
            group = _hard(file, table)
        if not isinstance(group, h5py.Group):
            raise damaged(path, f"{table} is missing or not a group")
        found[table] = {}
        for name, column in columns.items():
            with reading(path, f"{table}/{name}"):
                dataset = _hard(group, name)
                if dataset is None and (table, name) in schema.OPTIONAL:
                    continue
                _require_kind(path, f"{table}/{name}", dataset, column)
                _require_stored(path, dataset, size)
                unpacked += dataset.nbytes
            found[table][name] = column
    encrypted = "encryption_bytes" in found["uplink"]
    for table, name in schema.ENCRYPTION:
        if table != "starts" and (name in found[table]) != encrypted:  # all of them or none
            raise damaged(path, f"{table}/{name} and uplink/encryption_bytes are not both there")
    most = max(UNPACKED, UNPACKED_FACTOR * size)
    if unpacked > most:
        raise UserError(f"{path} has {unpacked} bytes unpacked, but at most {most} are read: unpack it first")
    return found


def _hard(group: h5py.Group, name: str) -> Any:
    """Return the object of this name in a group; None if it is missing or a soft or external link."""
    return group[name] if isinstance(group.get(name, getlink=True), h5py.HardLink) else None


def _require_kind(path: Path, name: str, dataset: Any, column: Column) -> None:
    expected = np.dtype(column.dtype)
    good = isinstance(dataset, h5py.Dataset) and dataset.shape is not None
    if good and expected.kind == "S":
        fixed = expected.itemsize or dataset.dtype.itemsize
        good = dataset.dtype.kind == "S" and 0 < dataset.dtype.itemsize == fixed <= LONGEST_NAME
    elif good:
        good = dataset.dtype == expected
    if not good or dataset.ndim != (2 if column.axis else 1):
        raise damaged(path, f"{name} is missing or of another type")


def _require_stored(path: Path, dataset: h5py.Dataset, size: int) -> None:
    """Raise UserError if the data of a dataset are outside the file, or larger than the file permits."""
    name, plist = dataset.name[1:], dataset.id.get_create_plist()
    layout = plist.get_layout()
    if layout not in (h5d.COMPACT, h5d.CONTIGUOUS, h5d.CHUNKED) or plist.get_external_count():
        raise damaged(path, f"{name} is stored outside the file")
    packed = {plist.get_filter(index)[0] for index in range(plist.get_nfilters())}
    if packed - FILTERS:
        raise damaged(path, f"{name} has an unknown filter")
    least = dataset.nbytes if h5z.FILTER_DEFLATE not in packed else dataset.nbytes // 1100  # deflate's best ratio
    if least > 2 * size + SLACK:
        raise damaged(path, f"{name} announces {dataset.nbytes} bytes in a file of {size}")
    if layout == h5d.CHUNKED and math.prod(dataset.chunks) * dataset.dtype.itemsize > max(UNPACKED, size):
        raise damaged(path, f"{name} has chunks of {dataset.chunks}")


def require_lengths(path: Path, file: h5py.File, columns: Mapping[str, Columns], attrs: Mapping[str, Any]) -> None:
    """Raise UserError if the lengths of tables are inconsistent: clients, layers or processes."""
    shapes = {table: {name: file[f"{table}/{name}"].shape for name in names} for table, names in columns.items()}
    rows = {table: next(iter(shapes[table].values()))[0] for table in schema.SINCE if table in shapes}
    width = {"layer": shapes["layers"]["name"][0], "mpi_rank": shapes["mpi"]["bytes_sent"][1]}
    if width["mpi_rank"] < attrs["world_size"]:
        raise damaged(path, f"world_size is {attrs['world_size']}, but mpi has {width['mpi_rank']} processes")
    rows |= {"layers": width["layer"], "clients": attrs["num_clients"]}
    for table, names in columns.items():
        for name, column in names.items():
            shape = shapes[table][name]
            if shape[0] != rows.get(table, shape[0]):
                raise damaged(path, f"{table}/{name} has {shape[0]} rows, not {rows[table]}")
            if column.axis in width and shape[1] != width[column.axis]:
                raise damaged(path, f"{table}/{name} has width {shape[1]}, not {width[column.axis]}")


def require_rows(path: Path, table: str, file: h5py.File, names: Columns, rows: int) -> None:
    """Raise UserError if a column of a table has fewer than `rows` rows."""
    for name in names:
        if file[f"{table}/{name}"].shape[0] < rows:
            raise damaged(path, f"{table}/{name} has fewer than {rows} rows")


def require_layers(path: Path, layers: Mapping[str, np.ndarray], spectrum: tuple[int, ...] | None) -> None:
    """Raise UserError if a shape of a layer is invalid or does not match numel, or if the spectra do not match.

    `spectrum` is the shape of uplink/spectrum, None if the log has no spectra.
    """
    parts = []
    for text, numel, compressible in zip(layers["shape"], layers["numel"], layers["compressible"], strict=True):
        if not SHAPE.fullmatch(text):
            raise damaged(path, f"layers/shape contains {text!r}")
        shape = () if text == "scalar" else tuple(int(side) for side in text.split("x"))
        if math.prod(shape) != numel or (compressible and len(shape) < 2):
            raise damaged(path, f"layers/numel is {numel}, but the shape is {text}")
        parts.append(("", shape, bool(compressible)))
    if spectrum is not None and spectrum[1] != schema.components(parts):
        raise damaged(path, f"uplink/spectrum has width {spectrum[1]}, not {schema.components(parts)}")


def require_values(path: Path, name: str, column: Column, values: np.ndarray, attrs: Mapping[str, Any]) -> None:
    """Raise UserError if a column contains a number that its unit does not allow."""
    if values.dtype.kind == "b" and (values.view(np.uint8) > 1).any():
        raise damaged(path, f"{name} contains a value that is neither yes nor no")
    if values.dtype.kind != "i" or not values.size:
        return
    least = -1 if column.unit == "components" or name == "events/client" else 0
    most = attrs["num_clients"] if name in ("uplink/client", "training/client") else MOST
    if values.min() < least or values.max() >= most:
        wrong = values[(values < least) | (values >= most)].flat[0]
        raise damaged(path, f"{name} contains {wrong}")


def text(path: Path, name: str, values: np.ndarray) -> np.ndarray:
    """Return a column of bytes as str; raises UserError if it is not UTF-8, or if the level of an event is unknown."""
    try:
        texts = np.char.decode(values, "utf-8")
    except UnicodeDecodeError:
        raise damaged(path, f"{name} is not UTF-8 text") from None
    if name == "events/level" and not set(texts.tolist()) <= set(schema.LEVELS):
        raise damaged(path, f"{name} contains another level than {', '.join(schema.LEVELS)}")
    return texts


def require_sums(path: Path, log: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Raise UserError if the sums of bytes in a log do not agree; the writer has checked the same sums."""
    rounds, up, down = log["rounds"], log["uplink"], log["downlink"]
    for way, table in (("uplink", up), ("downlink", down)):
        wrong = np.flatnonzero(table["bytes"] != checks.message_bytes(table))
        if len(wrong):
            raise damaged(path, f"{way}/bytes of row {wrong[0]} is not the sum of its parts")
    if (down["round"] != rounds["round"]).any():
        raise damaged(path, "downlink/round is not rounds/round")
    at = up["round"] - rounds["round"][0] if len(up["round"]) else up["round"]
    for name in (name for name in schema.SUMMED if name in up):
        total = np.zeros(len(rounds["round"]), np.int64)
        np.add.at(total, at, up[name])
        wrong = np.flatnonzero(total != rounds[f"uplink_{name}"])
        if len(wrong):
            raise damaged(path, f"rounds/uplink_{name} of row {wrong[0]} is not the sum of uplink/{name}")
