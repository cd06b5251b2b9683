"""A cost log that is being appended to: what is in it when `append` returns survives kill -9."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import h5py
import numpy as np
from h5py import h5f, h5p, h5s

from fedkd_mpi.costlog import schema
from fedkd_mpi.costlog.files import PAGE, Tables

# What HDF5 needs for its own structures stays below so many bytes a file and a chunk.
_FILE_OVERHEAD, _CHUNK_OVERHEAD = 32 * PAGE, 64


class LiveFile:
    """The growing tables of a log, open in SWMR mode: other processes may read it all the while.

    `widths` are the lengths of the second dimensions, `widths[table][column]`. Raises OSError.
    """

    def __init__(self, path: Path, columns: Mapping[str, Mapping[str, schema.Column]]):
        self._path = path
        # Straight into SWMR: opened for writing first and switched then, a kill in between would lock every reader out.
        access = h5p.create(h5p.FILE_ACCESS)
        access.set_libver_bounds(h5f.LIBVER_V110, h5f.LIBVER_V110)
        access.set_file_locking(False, True)
        self._file = h5py.File(h5f.open(os.fsencode(path), h5f.ACC_RDWR | h5f.ACC_SWMR_WRITE, fapl=access))
        data = {table: {name: self._file[table][name] for name in names} for table, names in columns.items()}
        self.widths = {table: {name: each.shape[1:] for name, each in names.items()} for table, names in data.items()}
        self._columns = {table: {name: _Column(each) for name, each in names.items()} for table, names in data.items()}
        self._rows = {table: len(next(iter(names.values()))) for table, names in data.items()}
        self._chunks = {table: [_chunk(each) for each in names.values()] for table, names in data.items()}
        self._base = path.stat().st_size + _FILE_OVERHEAD - self._chunk_bytes(self._rows)

    def append(self, rows: Tables, last: str) -> None:
        """Append rows to some tables: readers see them only from the moment the table `last` has them all.

        Raises OSError or RuntimeError where the file cannot be written.
        """
        grown = self._rows | {table: self._rows[table] + _height(columns) for table, columns in rows.items()}
        room = self._base + self._chunk_bytes(grown)
        self._reserve(room)
        for table, columns in rows.items():
            for name, values in columns.items():
                if (table, name) != (last, "round"):
                    self._columns[table][name].extend(self._rows[table], values)
        # Readers go by the `round` column: it may reach the file only when all the rest is there.
        self._file.flush()
        self._reserve(room)  # flushing cuts off what was not needed
        self._columns[last]["round"].extend(self._rows[last], rows[last]["round"])
        self._file.flush()
        self._rows = grown

    def close(self) -> None:
        """Close the file; all that was appended is in it already."""
        # Where HDF5 failed to write, closing fails again.
        with suppress(OSError, RuntimeError):
            self._file.close()

    def _chunk_bytes(self, rows: Mapping[str, int]) -> int:
        return sum(-(-rows[table] // count) * size for table, chunks in self._chunks.items() for count, size in chunks)

    def _reserve(self, size: int) -> None:
        # HDF5 does not survive a full disk: it crashes at exit. So the disk is asked for room before HDF5 writes.
        missing = size - self._path.stat().st_size
        if missing > 0:
            with self._path.open("ab") as file:
                file.write(bytes(missing))


class _Column:
    """One growing dataset: dataset.resize() and dataset[start:] = values, without what h5py looks up every time."""

    def __init__(self, dataset: h5py.Dataset):
        self._dataset, self._dtype = dataset.id, dataset.dtype
        self._type, self._space = dataset.id.get_type(), dataset.id.get_space()

    def extend(self, start: int, values: np.ndarray) -> None:
        shape = (start + len(values), *values.shape[1:])
        self._dataset.set_extent(shape)
        if values.size:
            self._space.set_extent_simple(shape, shape)
            self._space.select_hyperslab((start,) + (0,) * (values.ndim - 1), values.shape)
            self._dataset.write(
                _memory(values.shape), self._space, np.ascontiguousarray(values, self._dtype), self._type
            )


@lru_cache(maxsize=64)
def _memory(shape: tuple[int, ...]) -> h5s.SpaceID:
    return h5s.create_simple(shape)


def _chunk(dataset: h5py.Dataset) -> tuple[int, int]:
    pages = -(-dataset.dtype.itemsize * math.prod(dataset.chunks) // PAGE)
    return dataset.chunks[0], pages * PAGE + _CHUNK_OVERHEAD


def _height(columns: Mapping[str, np.ndarray]) -> int:
    return len(next(iter(columns.values())))
