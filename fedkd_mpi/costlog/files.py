"""Cost logs as files: complete HDF5 files are written by renaming, and unclosed files can be read."""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5ds

from fedkd_mpi.costlog import schema, superblock
from fedkd_mpi.costlog.column import Column
from fedkd_mpi.errors import UserError

Tables = Mapping[str, Mapping[str, np.ndarray]]

PAGE = 4096
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_CHUNK_BYTES, _CHUNK_ROWS = 65536, 512


def replace(path: Path, attrs: Mapping[str, Any], tables: Tables) -> None:
    """Write a complete log and replace `path` by it; at any time `path` is the old file or the new one, never a part.

    A link remains a link. Raises OSError if the file cannot be written.
    """
    # HDF5 crashes at exit after a write to a full disk. So it builds the file in memory.
    # v110 is the oldest format with SWMR, which older tools can read. With pages, no metadata object crosses a page
    # boundary, at which the kernel may cut the write of a process that is being killed.
    layout = {"libver": ("v110", "v110"), "fs_strategy": "page", "fs_page_size": PAGE}
    with h5py.File(path, "w", driver="core", backing_store=False, **layout) as file:
        file.attrs.update({**attrs, "schema_version": schema.SCHEMA_VERSION})
        for name, value in attrs.items():
            if isinstance(value, list):  # an empty list would become an array of numbers
                file.attrs.create(name, np.array(value, dtype=object), dtype=h5py.string_dtype())
        scales: dict[str, h5py.Dataset] = {}
        for table, columns in (schema.FIXED | schema.growing(attrs["metrics"])).items():
            for name, column in columns.items():
                if name in tables[table]:
                    values = tables[table][name]
                    if column.axis == "mpi_rank":
                        values = widen(values, max(values.shape[1], attrs["world_size"]))
                    dataset = _dataset(file, f"{table}/{name}", column, values, table in schema.GROWING)
                    dataset.attrs.update({"unit": column.unit, "description": column.description})
                    for axis, dimension in enumerate(filter(None, (schema.ROWS[table], column.axis))):
                        if dimension not in scales:
                            scales[dimension] = _scale(file, dimension, dataset.shape[axis], dataset.maxshape[axis])
                        h5ds.attach_scale(dataset.id, scales[dimension].id, axis)
        file.flush()
        image = superblock.close(file.id.get_file_image())  # HDF5 1.14 writes a wrong checksum
    path = real(path)
    new = temporary(path)
    try:
        new.unlink(missing_ok=True)  # left by a killed run; if it is a link, its target must not be overwritten
        with new.open("xb") as file:
            file.write(image)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def open_read(path: Path) -> h5py.File:
    """Open a log for reading, also while it is written or after its writer was killed; raises UserError."""
    try:
        with path.open("rb") as file:
            signature = file.read(len(_SIGNATURE))
        if signature != _SIGNATURE:
            raise UserError(f"{path} is not an HDF5 file")
        # No lock: reading does not need one, and some cluster file systems have none.
        try:
            return h5py.File(path, "r", locking=False)
        except OSError as error:
            image = path.read_bytes()
            if not superblock.is_open(image):
                raise UserError(f"cannot read the log {path}: {reason(error)}") from error
        if image != path.read_bytes():
            return h5py.File(path, "r", locking=False, swmr=True)
        # Two equal reads: nobody wrote in between, so the image is complete. A file that no longer changes is not read
        # with SWMR, because HDF5 would retry practically for ever if a checksum of a damaged file is wrong.
        try:
            return h5py.File(io.BytesIO(superblock.close(image)), "r")
        except (OSError, RuntimeError) as error:
            raise UserError(f"{path} is damaged: {reason(error)}") from error
    except OSError as error:
        raise UserError(f"cannot read the log {path}: {reason(error)}") from error


def is_open(path: Path) -> bool:
    """Whether a file is a log that its writer, running or ended, has not closed."""
    try:
        with path.open("rb") as file:
            return superblock.is_open(file.read(PAGE))
    except OSError:
        return False


def state(path: Path) -> tuple[int, ...] | None:
    """Return device, inode, size and time of a file, which change when it is written; None if it does not exist."""
    try:
        now = path.stat()
    except OSError:
        return None
    return now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns


def size(path: Path) -> int:
    """Return the size of a file in bytes."""
    return path.stat().st_size


def real(path: Path) -> Path:
    """Return the path with links resolved, or the path itself if there are none, so that a log has one name.

    Raises UserError if a link leads to itself.
    """
    found = Path(os.path.realpath(path))
    if found.is_symlink():
        raise UserError(f"{path} is a link that leads to itself")
    return path if found == Path(os.path.normpath(Path.cwd() / path)) else found


def check_output(path: str | Path, overwrite: bool) -> None:
    """Create the folder of a new log and check that the log can be written there; called before a long start.

    Raises UserError if the file exists without `overwrite`, or if its folder cannot be created or written.
    """
    path = real(Path(path))
    try:
        if path.is_dir():
            raise UserError(f"cannot write the log {path}: it is a folder")
        if path.exists() and not overwrite:
            raise UserError(f"the log {path} exists: choose another with --output, or replace it with --overwrite")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary(path).unlink(missing_ok=True)
        temporary(path).touch(exist_ok=False)
        temporary(path).unlink()
    except OSError as error:
        raise UserError(f"cannot write the log {path}: {error.strerror}; choose another with --output") from error


def temporary(path: Path) -> Path:
    """Return the path under which the next version of a log is written before it is renamed."""
    return path.with_name(f"{path.name}.tmp")


def widen(values: np.ndarray, width: int) -> np.ndarray:
    """Return [rows, processes] as [rows, width]; missing processes have 0 bytes and NaN seconds."""
    wide = np.full((len(values), width), np.nan if values.dtype.kind == "f" else 0, values.dtype)
    wide[:, : values.shape[1]] = values
    return wide


def reason(error: Exception) -> str:
    """Return the reason of an error of HDF5 or the system in one line, shorter than HDF5's message."""
    text = " ".join(str(error).split())
    if "unable to lock file" in text:
        return "HDF5 could not lock it: set HDF5_USE_FILE_LOCKING=FALSE"
    system = re.search(r"error message = '([^']*)'", text)
    number = getattr(error, "errno", None)
    return system[1] if system else os.strerror(number) if number else text


def _scale(file: h5py.File, name: str, length: int, most: int | None) -> h5py.Dataset:
    """Return a new dimension without values of its own, as the netCDF library writes it, which names axes alone.

    It grows without bound where `most` is None; its columns then tell its length.
    """
    grows = {"maxshape": (None,), "chunks": (_CHUNK_ROWS,)} if most is None else {}
    scale = file.create_dataset(name, (0 if grows else length,), ">f4", **grows)
    text = f"This is a netCDF dimension but not a netCDF variable{0 if grows else length:10d}"
    h5ds.set_scale(scale.id, text.encode())
    return scale


def _dataset(file: h5py.File, name: str, column: Column, values: np.ndarray, grows: bool) -> h5py.Dataset:
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
    most = (None, *(size or None for size in width))  # width 0 (no layers) is unlimited: chunks must fit the maximum
    return file.create_dataset(name, data=values.astype(dtype), maxshape=most, chunks=chunks, fillvalue=fill)
