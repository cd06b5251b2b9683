"""How a cost log lies on disk: the HDF5 settings that make it survive kill -9 and readable by old tools and new."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5f, h5p

from fedkd_mpi.costlog import schema
from fedkd_mpi.errors import UserError

Tables = Mapping[str, Mapping[str, np.ndarray]]

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_CHUNK_BYTES, _CHUNK_ROWS = 65536, 512


def replace(path: Path, attrs: Mapping[str, Any], tables: Tables) -> None:
    """Write a whole log and put it in the place of `path`, which holds the old file or the new one, never a part.

    Raises OSError where the file cannot be written.
    """
    new = temporary(path)
    try:
        _save(new, attrs, tables)
        with new.open("rb") as file:
            os.fsync(file.fileno())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def open_append(path: Path) -> h5py.File:
    """Open a whole log for appending in SWMR mode; raises OSError."""
    # Straight into SWMR: opened for writing first and switched then, a kill in between would lock every reader out.
    access = h5p.create(h5p.FILE_ACCESS)
    access.set_libver_bounds(h5f.LIBVER_V110, h5f.LIBVER_V110)
    access.set_file_locking(False, True)
    return h5py.File(h5f.open(os.fsencode(path), h5f.ACC_RDWR | h5f.ACC_SWMR_WRITE, fapl=access))


def open_read(path: Path) -> h5py.File:
    """Open a log for reading, while it is written or after its writer was killed too; raises UserError."""
    try:
        with path.open("rb") as file:
            signature = file.read(len(_SIGNATURE))
    except OSError as error:
        raise UserError(f"cannot read the log {path}: {error.strerror}") from error
    if signature != _SIGNATURE:
        raise UserError(f"{path} is not an HDF5 file")
    # No lock is taken: reading needs none, and some cluster file systems have none to give.
    try:
        return h5py.File(path, "r", locking=False)
    except OSError:
        # Not closed by its writer. The plain way is tried first: only it sees that a finished file was cut short.
        try:
            return h5py.File(path, "r", locking=False, swmr=True)
        except OSError as error:
            raise UserError(f"cannot read the log {path}: {reason(error)}") from error


def append(dataset: h5py.Dataset, start: int, values: np.ndarray) -> None:
    """Make `values` the rows of a dataset from row `start` on."""
    if len(values):
        dataset.resize(start + len(values), axis=0)
        dataset[start:] = values.astype(dataset.dtype)


def close(file: h5py.File) -> None:
    """Close a file whose contents were flushed, or whose failure was reported: on a full disk closing fails again."""
    with suppress(OSError, RuntimeError):
        file.close()


def temporary(path: Path) -> Path:
    """Return the name under which the next version of a log is made."""
    return path.with_name(f"{path.name}.tmp")


def widen(values: np.ndarray, width: int) -> np.ndarray:
    """Return [rows, processes] as [rows, width]: processes that did not exist have 0 bytes and NaN seconds."""
    wide = np.full((len(values), width), np.nan if values.dtype.kind == "f" else 0, values.dtype)
    wide[:, : values.shape[1]] = values
    return wide


def reason(error: Exception) -> str:
    """Return in a line why HDF5 or the system refused, shorter than HDF5 says it."""
    text = " ".join(str(error).split())
    if "unable to lock file" in text:
        return "HDF5 could not lock it: set HDF5_USE_FILE_LOCKING=FALSE"
    number = getattr(error, "errno", None)
    return os.strerror(number) if number else text


def _save(path: Path, attrs: Mapping[str, Any], tables: Tables) -> None:
    # v110 is the oldest format that has SWMR: older tools read it too. With pages no metadata object lies across a page
    # boundary, where the kernel may cut short the write of a process that is being killed.
    file = h5py.File(path, "w", libver=("v110", "v110"), locking=False, fs_strategy="page", fs_page_size=4096)
    try:
        file.attrs.update({"schema_version": schema.SCHEMA_VERSION, **attrs})
        for table, columns in (schema.FIXED | schema.growing(attrs["metrics"])).items():
            for name, column in columns.items():
                if name in tables[table]:
                    values = tables[table][name]
                    if column.axis == "mpi_rank":
                        values = widen(values, max(values.shape[1], attrs["world_size"]))
                    dataset = _dataset(file, f"{table}/{name}", column, values, table in schema.GROWING)
                    dataset.attrs.update({"unit": column.unit, "description": column.description})
        file.flush()
    finally:
        close(file)


def _dataset(file: h5py.File, name: str, column: schema.Column, values: np.ndarray, grows: bool) -> h5py.Dataset:
    dtype = np.dtype(column.dtype)
    if dtype.kind == "S":
        values = np.char.encode(values.astype(str), "utf-8")
        dtype = h5py.string_dtype("utf-8", dtype.itemsize or max(1, values.dtype.itemsize))
    if not grows:
        return file.create_dataset(name, data=values.astype(dtype))
    width = values.shape[1:]
    rows = _CHUNK_BYTES // (dtype.itemsize * max(1, math.prod(width)))
    chunks = (max(1, min(rows, _CHUNK_ROWS)), *(max(1, size) for size in width))
    fill = {"i": -1, "f": np.nan}.get(dtype.kind)
    return file.create_dataset(name, data=values.astype(dtype), maxshape=(None, *width), chunks=chunks, fillvalue=fill)
