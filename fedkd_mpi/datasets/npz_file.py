"""Arrays of a NumPy .npz file, none of which is allocated before its header was believed, and none unpickled."""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, TypeVar

import numpy as np
from numpy.lib import format as npy

from fedkd_mpi.common.machine import require_memory
from fedkd_mpi.errors import LONGEST_LINE, UserError, shown

DAMAGE = (zipfile.BadZipFile, zlib.error, ValueError, EOFError, NotImplementedError, RuntimeError, struct.error)
Found = TypeVar("Found")
COPIES = 2  # of every array: as it was read, and divided into training and test part


class NpzFile:
    """An .npz file; `names` are those of its arrays."""

    def __init__(self, path: Path):
        self.path = path
        if not path.is_file():
            raise UserError(f"{path}: not a file; an .npz file of numpy.savez is needed")
        try:
            self._zip = zipfile.ZipFile(path)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
        except DAMAGE as error:
            raise UserError(f"{path}: not a whole .npz file ({error}); write it with numpy.savez") from None
        self.names = [name.removesuffix(".npy") for name in self._zip.namelist() if name.endswith(".npy")]

    def read(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Return arrays in this machine's byte order; raises UserError where one is not there, damaged or too large.

        All their headers are looked at before the first is allocated.
        """
        for name in names:
            if name not in self.names:
                raise UserError(f"{self.path}: no array {shown(name)!r}; it has {shown(', '.join(self.names), 200)}")
        needed = sum(self._guarded(name, self._size) for name in names)
        require_memory(f"{self.path}: {', '.join(names)}", COPIES * needed, "take a smaller part of it")
        return {name: self._guarded(name, self._read) for name in names}

    def _guarded(self, name: str, work: Callable[[str, IO[bytes]], Found]) -> Found:
        try:
            with self._zip.open(f"{name}.npy") as stream:
                return work(name, stream)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror or error})") from None
        except DAMAGE as error:
            text = shown(" ".join(str(error).split()), LONGEST_LINE)
            raise UserError(f"{self.path}: array {shown(name)!r} is damaged ({text}); write the file again") from None

    def _size(self, name: str, stream: IO[bytes]) -> int:
        shape, dtype = self._header(name, stream)
        size = math.prod(shape) * dtype.itemsize
        stored = self._zip.getinfo(f"{name}.npy").file_size - stream.tell()
        if size != stored:
            raise ValueError(f"its header {list(shape)} {dtype} asks for {size} bytes, there are {stored}")
        return size

    def _read(self, name: str, stream: IO[bytes]) -> np.ndarray:
        array = npy.read_array(stream, allow_pickle=False)
        return np.asarray(array, array.dtype.newbyteorder("="), order="C")

    def _header(self, name: str, stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
        version = npy.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"version {version} of the format is of structured arrays")
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read(stream)
        if dtype.hasobject:
            raise UserError(
                f"{self.path}: array {shown(name)!r} holds Python objects, which are pickled and never read: save it "
                "as numbers or as text (.astype(str))"
            )
        return shape, dtype
