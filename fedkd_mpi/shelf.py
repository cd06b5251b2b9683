"""Boxes of named arrays that all processes of a node fill and read in place: one file in memory, which has no name.

Nothing is left behind, whatever ends the processes: the file's name goes as soon as all have opened it.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from fedkd_mpi import shared_memory
from fedkd_mpi.errors import RunFault, UserError
from fedkd_mpi.shared_memory import FOLDER, padded
from fedkd_mpi.world import World

NUMBER, END, BOXES = range(3)  # the board: a counter, where the file's free room begins, and of each box ...
START, ROOM, VERSION = range(3)  # ... its first byte, its bytes, how often it was filled anew
LENGTH = 8  # bytes at the start of a box: how long the JSON text behind them is, which says what lies where
LEAST = 2**22  # bytes by which the file grows at least ...
SPARE = 0.25  # ... and as a share of what it has; as much is a box given that had to be moved


class Shelf:
    """`count` boxes, empty at first, of all processes of a node together. Made by all processes of the world at once.

    One process at a time may fill a box. Who reads it afterwards must have learnt of that from this shelf (take_number,
    versions), whose lock puts in order what processes see of each other's work.
    """

    def __init__(self, world: World, count: int, expected: int):
        """Share a file; `expected` is about how many bytes it will hold: it tells which folder is large enough.

        Raises the same UserError everywhere where no file can be made, or the processes of a node cannot all open it.
        """
        self._hostname = world.hostname
        size = padded(8 * (BOXES + count * 3))
        path = world.together(lambda: _create(_folder(expected), size) if world.is_node_leader else None)
        path = world.tell_node(path)
        try:
            self._file = world.together(lambda: _open(path, world.hostname))
        finally:
            if world.is_node_leader:
                Path(path).unlink()
        weakref.finalize(self, os.close, self._file)
        self._memory = mmap.mmap(self._file, size)
        self._board = np.frombuffer(self._memory, np.int64, BOXES + count * 3)
        self._boxes = self._board[BOXES:].reshape(count, 3)
        if world.is_node_leader:
            self._board[END] = size
        world.barrier()
        self._seen: dict[int, tuple[int, dict[str, np.ndarray]]] = {}  # the arrays of a box in some version

    def take_number(self) -> int:
        """Return 0, 1, 2, ...: every call, in whatever process of the node, gets another one."""
        with self._locked():
            number = int(self._board[NUMBER])
            self._board[NUMBER] = number + 1
        return number

    def versions(self, boxes: list[int]) -> list[int]:
        """Return how often each box was filled anew, 0 while it is empty."""
        with self._locked():
            return self._boxes[boxes, VERSION].tolist()

    def read(self, box: int) -> dict[str, np.ndarray]:
        """Return the arrays of a box, {} if it is empty; not copies: what is written to them lies in the box."""
        with self._locked():
            start, _, version = self._boxes[box].tolist()
        if not version:
            return {}
        if self._seen.get(box, (0,))[0] != version:
            self._map(start + LENGTH)
            text = start + LENGTH + int.from_bytes(self._memory[start : start + LENGTH], "little")
            self._map(text)
            self._seen[box] = version, self._views(padded(text), json.loads(self._memory[start + LENGTH : text]))
        return dict(self._seen[box][1])

    def update(self, box: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Put arrays into a box in place of those in it, which they may be: then nothing is copied.

        Only other names, types or shapes make a new version. Raises RunFault where the node has no room for them.
        """
        present = self.read(box)
        if _layout(present) != _layout(arrays):
            self.fill(box, {name: array.copy() for name, array in arrays.items()} if present else arrays)
            return
        for name, array in arrays.items():
            if array.__array_interface__["data"] != present[name].__array_interface__["data"]:
                present[name][...] = array

    def fill(self, box: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Put arrays, none of which lies in it, into a box as a new version; raises RunFault as update() does."""
        entries, size = shared_memory.lay_out(arrays)
        text = json.dumps(entries).encode()
        head = padded(LENGTH + len(text))
        with self._locked():
            start, room, version = self._boxes[box].tolist()
            if head + size > room:
                start, room = self._make_room(head + size, moved=version > 0)
        self._map(start + head + size)
        self._memory[start : start + LENGTH + len(text)] = len(text).to_bytes(LENGTH, "little") + text
        views = self._views(start + head, entries)
        for name, array in arrays.items():
            views[name][...] = array
        with self._locked():
            self._boxes[box] = start, room, version + 1
        self._seen[box] = version + 1, views

    def _views(self, first: int, entries: list[shared_memory.Entry]) -> dict[str, np.ndarray]:
        ends = [at + int(np.prod(shape)) * np.dtype(kind).itemsize for _, kind, shape, at in entries]
        self._map(first + max(ends, default=0))
        return shared_memory.views(entries, memoryview(self._memory)[first:])

    def _make_room(self, needed: int, *, moved: bool) -> tuple[int, int]:
        """First byte and bytes of a new place for a box, at the end of the file; under the lock."""
        start, size = int(self._board[END]), os.fstat(self._file).st_size
        room = padded(needed + int(SPARE * needed) * moved)
        if start + room > size:
            try:  # a full tmpfs would show itself as a bus error at the first write
                os.posix_fallocate(self._file, size, max(start + room - size, LEAST, int(SPARE * size)))
            except OSError as error:
                raise RunFault(
                    f"no room to share the states of the clients on {self._hostname} ({error.strerror}): enlarge "
                    f"{FOLDER}, or let every process train its own (balance=false)"
                ) from error
        self._board[END] = start + room
        return start, room

    def _map(self, end: int) -> None:
        """Have the file mapped at least so far; arrays that were handed out keep the map that they lie in."""
        if end > len(self._memory):
            self._memory = mmap.mmap(self._file, os.fstat(self._file).st_size)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)


def _folder(expected: int) -> Path:
    """Return memory's folder where it has room enough; else TMPDIR, of which the system keeps in memory what it can."""
    try:
        shared_memory.check_room(2 * expected, "")
    except UserError:
        return Path(tempfile.gettempdir())
    return FOLDER if FOLDER.is_dir() else Path(tempfile.gettempdir())


def _create(folder: Path, size: int) -> str:
    try:
        descriptor, path = tempfile.mkstemp(prefix="fedkd-clients-", dir=folder)
        os.posix_fallocate(descriptor, 0, size)
        os.close(descriptor)
    except OSError as error:
        raise UserError(f"cannot share the clients' states in {folder} ({error.strerror}): set balance=false") from None
    return path


def _open(path: str, hostname: str) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise UserError(
            f"the processes on {hostname} do not all see {Path(path).parent} ({error.strerror}): set balance=false"
        ) from None


def _layout(arrays: Mapping[str, np.ndarray]) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(name, array.dtype.str, array.shape) for name, array in arrays.items()]
