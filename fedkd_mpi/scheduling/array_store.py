"""Numbered slots of named arrays in one file, in memory or on disk, shared by all processes of a node.

The file's name is removed as soon as all processes have opened it. So the file is freed however the processes end.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import tempfile
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from fedkd_mpi.communication import shared_memory
from fedkd_mpi.communication.shared_memory import ALIGNMENT, FOLDER, flat_bytes, padded
from fedkd_mpi.communication.world import World
from fedkd_mpi.errors import RunFault, UserError

NUMBER, END, SLOTS = range(3)  # columns of the table: next index, first free byte of the file, then the slots
START, ROOM, VERSION = range(3)  # columns of a slot: first byte, bytes reserved, how often it was written anew
LENGTH = 8  # bytes at the start of a slot: the length of the JSON text behind them, which lists its arrays
SPARE = 0.25  # the file grows by this share of its size; a slot that is moved gets this share in addition
LEAST, MOST = 2**22, 2**28  # bytes: bounds of that growth (more if one slot needs more)


class ArrayStore(ABC):
    """`count` slots, empty at first, shared by the processes of a node; created collectively by all processes.

    One process at a time may write a slot. Readers learn of a write through this store (next_index, versions), whose
    lock orders what processes see of each other's work. A process may change the arrays that it has read, but only
    update() makes sure that the slot has the changes.
    """

    remedy: str  # what a user can do if there is no room

    def __init__(self, world: World, count: int, expected: int):
        """Create and open the shared file; `expected`, its approximate final size in bytes, determines the folder.

        Raises the same UserError on every process if the file cannot be created or a process cannot open it.
        """
        self._hostname = world.hostname
        size = padded(8 * (SLOTS + count * 3))
        path = world.collectively(lambda: self._create(self._folder(expected), size) if world.is_node_leader else None)
        path = world.broadcast_on_node(path)
        try:
            self._file = world.collectively(lambda: self._open(path))
        finally:
            if world.is_node_leader:
                Path(path).unlink()
        weakref.finalize(self, os.close, self._file)
        self._memory = mmap.mmap(self._file, size)
        self._table = np.frombuffer(self._memory, np.int64, SLOTS + count * 3)
        self._slots = self._table[SLOTS:].reshape(count, 3)
        if world.is_node_leader:
            self._table[END] = size
        world.barrier()

    def next_index(self) -> int:
        """Return 0, 1, 2, ...: every call in any process of the node returns the next number (fetch-and-add)."""
        with self._locked():
            number = int(self._table[NUMBER])
            self._table[NUMBER] = number + 1
        return number

    def versions(self, slots: list[int]) -> list[int]:
        """Return how often put() has written each slot, 0 while it is empty; update() may count or not."""
        with self._locked():
            versions: list[int] = self._slots[slots, VERSION].tolist()
        return versions

    @abstractmethod
    def prefetch(self, slots: Sequence[int]) -> None:
        """Announce which slots will soon be read."""

    @abstractmethod
    def read(self, slot: int) -> dict[str, np.ndarray]:
        """Return the arrays of a slot, 64-byte aligned and writeable, {} if it is empty."""

    @abstractmethod
    def update(self, slot: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Replace the arrays of a slot, possibly by those read from it; raises RunFault if there is no room."""

    def put(self, slot: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Write arrays to a slot as a new version; none of them may be a view of the slot.

        Raises RunFault if the node has no room for the arrays.
        """
        entries, size = shared_memory.block_layout(arrays)
        text = json.dumps(entries).encode()
        head = (len(text).to_bytes(LENGTH, "little") + text).ljust(padded(LENGTH + len(text)), b"\0")
        with self._locked():
            start, room, version = self._slots[slot].tolist()
            if len(head) + size > room:
                start, room = self._make_room(len(head) + size, moved=version > 0)
        self._write(start, np.frombuffer(head, np.uint8))
        for array, (*_, at) in zip(arrays.values(), entries, strict=True):
            self._write(start + len(head) + at, flat_bytes(np.ascontiguousarray(array)))
        with self._locked():
            self._slots[slot] = start, room, version + 1

    @abstractmethod
    def _write(self, start: int, data: np.ndarray) -> None:
        """Write uint8 data to the file, which is long enough, from the byte `start` on."""

    def _make_room(self, needed: int, *, moved: bool) -> tuple[int, int]:
        """Return first byte and size of a new region for a slot, at the end of the file; the caller holds the lock."""
        start, size = int(self._table[END]), os.fstat(self._file).st_size
        room = padded(needed + int(SPARE * needed) * moved)
        if start + room > size:
            more = max(start + room - size, LEAST, min(int(SPARE * size), MOST))
            try:  # without this allocation a full tmpfs would cause a bus error at the first write
                os.posix_fallocate(self._file, size, more)
            except OSError as error:
                raise self._full(error) from error
        self._table[END] = start + room
        return start, room

    def _full(self, error: OSError) -> RunFault:
        return RunFault(f"no room for the states of clients on {self._hostname} ({error.strerror}): {self.remedy}")

    def _create(self, folder: Path, size: int) -> str:
        try:
            descriptor, path = tempfile.mkstemp(prefix="fedkd-clients-", dir=folder)
            os.posix_fallocate(descriptor, 0, size)
            os.close(descriptor)
        except OSError as error:
            where = f"{folder} on {self._hostname} ({error.strerror})"
            raise UserError(f"cannot write the states of clients to {where}: {self.remedy}") from None
        return path

    def _open(self, path: str) -> int:
        try:
            return os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            where = f"{Path(path).parent} ({error.strerror})"
            raise UserError(f"not all processes on {self._hostname} can open {where}: {self.remedy}") from None

    @staticmethod
    @abstractmethod
    def _folder(expected: int) -> Path:
        """Return the folder for a file of about `expected` bytes."""

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)


class SharedArrayStore(ArrayStore):
    """Slots in memory that is shared by the node's processes: read() returns views, update() does not copy them."""

    remedy = f"enlarge {FOLDER}, or let every process train its own clients (balance=false)"

    def __init__(self, world: World, count: int, expected: int):
        super().__init__(world, count, expected)
        self._seen: dict[int, tuple[int, dict[str, np.ndarray]]] = {}  # version and arrays of the slots read so far

    def prefetch(self, slots: Sequence[int]) -> None:
        """Announce which slots will soon be read; nothing to do for slots in memory."""

    def read(self, slot: int) -> dict[str, np.ndarray]:
        """Return the arrays of a slot, {} if it is empty; they are views: writing to them changes the slot."""
        with self._locked():
            start, room, version = self._slots[slot].tolist()
        if not version:
            return {}
        if self._seen.get(slot, (0,))[0] != version:
            self._map(start + room)
            self._seen[slot] = version, _unpack(np.frombuffer(self._memory, np.uint8, room, start))
        return dict(self._seen[slot][1])

    def update(self, slot: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Replace the arrays of a slot; arrays that are views of the slot are not copied.

        The version changes only with names, types or shapes. Raises RunFault if the node has no room for the arrays.
        """
        present = self.read(slot)
        if _layout(present) != _layout(arrays):
            self.put(slot, {name: array.copy() for name, array in arrays.items()} if present else arrays)
            return
        for name, array in arrays.items():
            if array.__array_interface__["data"] != present[name].__array_interface__["data"]:
                present[name][...] = array

    def _write(self, start: int, data: np.ndarray) -> None:
        self._map(start + data.size)
        self._memory[start : start + data.size] = data.data

    def _map(self, end: int) -> None:
        """Map the file at least up to the byte `end`; arrays returned earlier keep the old map alive."""
        if end > len(self._memory):
            self._memory = mmap.mmap(self._file, os.fstat(self._file).st_size)

    @staticmethod
    def _folder(expected: int) -> Path:
        """Return the folder in memory if it has enough room, else TMPDIR, whose pages the system caches."""
        try:
            shared_memory.check_room(2 * expected, "")
        except UserError:
            return Path(tempfile.gettempdir())
        return FOLDER if FOLDER.is_dir() else Path(tempfile.gettempdir())


class DiskArrayStore(ArrayStore):
    """Slots in a file under TMPDIR: read() returns copies, which take memory in a process only while it uses them."""

    remedy = "set TMPDIR to a folder with more room, or keep all states in memory (clients_in_memory=null)"

    def prefetch(self, slots: Sequence[int]) -> None:
        """Make the operating system begin to read the slots from disk."""
        for start, room, _ in self._slots[slots].tolist():
            os.posix_fadvise(self._file, start, room, os.POSIX_FADV_WILLNEED)

    def read(self, slot: int) -> dict[str, np.ndarray]:
        """Return copies of the arrays of a slot, {} if it is empty."""
        with self._locked():
            start, room, version = self._slots[slot].tolist()
        if not version:
            return {}
        block, filled = np.empty(room + ALIGNMENT, np.uint8), 0
        block = block[-block.ctypes.data % ALIGNMENT :][:room]
        while filled < room:
            if not (more := os.preadv(self._file, [block[filled:].data], start + filled)):
                raise RunFault(f"the file with the states of clients on {self._hostname} has been truncated")
            filled += more
        return _unpack(block)

    def update(self, slot: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Replace the arrays of a slot, as a new version; raises RunFault if the disk has no room for the arrays."""
        self.put(slot, arrays)

    def _write(self, start: int, data: np.ndarray) -> None:
        while data.size:
            try:  # not every file system reserves the room that was allocated
                written = os.pwrite(self._file, data.data, start)
            except OSError as error:
                raise self._full(error) from error
            data, start = data[written:], start + written

    @staticmethod
    def _folder(expected: int) -> Path:
        return Path(tempfile.gettempdir())


def _unpack(block: np.ndarray) -> dict[str, np.ndarray]:
    text = LENGTH + int.from_bytes(block[:LENGTH].tobytes(), "little")
    return shared_memory.views(json.loads(block[LENGTH:text].tobytes()), block[padded(text) :])


def _layout(arrays: Mapping[str, np.ndarray]) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(name, array.dtype.str, array.shape) for name, array in arrays.items()]
