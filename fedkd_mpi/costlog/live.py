"""A cost log that is being appended to: rows survive kill -9 once append() has returned."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import h5py
import numpy as np
from h5py import h5f, h5p, h5s

from fedkd_mpi.costlog.column import Column
from fedkd_mpi.costlog.files import PAGE, Tables

# Upper bounds of the bytes that HDF5 needs for its own structures, per file and per chunk.
_FILE_OVERHEAD, _CHUNK_OVERHEAD = 32 * PAGE, 64


class LiveFile:
    """The growing tables of a log, open in SWMR mode, in which other processes may read the file.

    `widths[table][column]` are the lengths of the second dimensions. Raises OSError if the file cannot be opened.
    """

    def __init__(self, path: Path, columns: Mapping[str, Mapping[str, Column]]):
        self._path = path
        # Open directly in SWMR mode: a kill between opening and a later switch would lock out every reader.
        access = h5p.create(h5p.FILE_ACCESS)
        access.set_libver_bounds(h5f.LIBVER_V110, h5f.LIBVER_V110)
        access.set_file_locking(False, True)
        self._file = h5py.File(h5f.open(os.fsencode(path), h5f.ACC_RDWR | h5f.ACC_SWMR_WRITE, fapl=access))
        self._identity = _identity(os.fstat(self._file.id.get_vfd_handle()))
        data = {table: {name: self._file[table][name] for name in names} for table, names in columns.items()}
        self.widths = {table: {name: each.shape[1:] for name, each in names.items()} for table, names in data.items()}
        self._tables = {table: _Table(names) for table, names in data.items()}
        self._chunks = self._chunk_bytes({})
        self._base = path.stat().st_size + _FILE_OVERHEAD - self._chunks

    def append(self, rows: Tables, last: str) -> None:
        """Append rows to tables; readers see them only once the table `last` is complete.

        Raises OSError or RuntimeError if the file cannot be written.
        """
        chunks = self._chunk_bytes({table: _height(columns) for table, columns in rows.items()})
        if grows := chunks > self._chunks:
            self._reserve(self._base + chunks)
            self._chunks = chunks
        for table, columns in rows.items():
            self._tables[table].append(columns, but="round" if table == last else None)
        # Readers use the column `round`: it may be written only when all other columns are in the file.
        self._file.flush()
        if grows:
            self._reserve(self._base + chunks)  # flushing truncates unused space
        self._tables[last].number(rows[last]["round"])
        self._file.flush()

    def in_place(self) -> bool:
        """Whether the file that was opened still has its name."""
        try:
            return _identity(self._path.stat()) == self._identity
        except OSError:
            return False

    def close(self) -> None:
        """Close the file; all appended rows are already in it."""
        # If HDF5 failed to write, closing fails again.
        with suppress(OSError, RuntimeError):
            self._file.close()

    def _chunk_bytes(self, more: Mapping[str, int]) -> int:
        return sum(each.chunk_bytes(more.get(table, 0)) for table, each in self._tables.items())

    def _reserve(self, size: int) -> None:
        # HDF5 crashes at exit after a write to a full disk. So space is allocated before HDF5 writes.
        missing = size - self._path.stat().st_size
        if missing > 0:
            with self._path.open("ab") as file:
                file.write(bytes(missing))


class _Table:
    """The columns of a growing table, through HDF5's own interface, which avoids h5py's overhead per call."""

    def __init__(self, columns: Mapping[str, h5py.Dataset]):
        self._columns = {name: (each.id, each.id.get_type(), each.shape[1:]) for name, each in columns.items()}
        self._rows = _height(columns)
        widths = {width for _, _, width in self._columns.values() if 0 not in width}
        self._numbers = h5s.create_simple((self._rows,), (h5s.UNLIMITED,))
        self._spaces = {width: h5s.create_simple((self._rows, *width)) for width in widths}
        self._chunks: Counter[int] = Counter()  # bytes of chunks, by their rows
        for each in columns.values():
            pages = -(-each.dtype.itemsize * math.prod(each.chunks) // PAGE)
            self._chunks[each.chunks[0]] += pages * PAGE + _CHUNK_OVERHEAD

    def append(self, values: Mapping[str, np.ndarray], but: str | None) -> None:
        """Write rows to all columns except the column `but`, for which number() is called later."""
        first, count = self._rows, _height(values)
        self._rows += count
        if not count:
            return
        for width, space in self._spaces.items():
            space.set_extent_simple((self._rows, *width))
            space.select_hyperslab((first, *(0 for _ in width)), (count, *width))
        for name, (dataset, kind, width) in self._columns.items():
            if name != but:
                dataset.set_extent((self._rows, *width))
            if name != but and width in self._spaces:
                dataset.write(_memory((count, *width)), self._spaces[width], np.ascontiguousarray(values[name]), kind)

    def number(self, values: np.ndarray) -> None:
        """Write the column `round` of the rows that were appended last."""
        dataset, kind, _ = self._columns["round"]
        dataset.set_extent((self._rows,))
        self._numbers.set_extent_simple((self._rows,))
        self._numbers.select_hyperslab((self._rows - len(values),), values.shape)
        dataset.write(_memory(values.shape), self._numbers, np.ascontiguousarray(values), kind)

    def chunk_bytes(self, more: int) -> int:
        """Return an upper bound of the bytes of the chunks of all rows and `more` further rows."""
        return sum(-(-(self._rows + more) // count) * size for count, size in self._chunks.items())


@lru_cache(maxsize=64)
def _memory(shape: tuple[int, ...]) -> h5s.SpaceID:
    return h5s.create_simple(shape)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _height(columns: Mapping[str, np.ndarray | h5py.Dataset]) -> int:
    return len(next(iter(columns.values())))
