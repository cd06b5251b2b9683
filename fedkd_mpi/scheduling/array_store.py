"""Boxes of named arrays that all processes of a node fill and read: one file in memory or on disk, without a name.

Nothing is left behind, whatever ends the processes: the file's name goes as soon as all have opened it.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from fedkd_mpi.communication import shared_memory
from fedkd_mpi.communication.shared_memory import ALIGNMENT, FOLDER, flat_bytes, padded
from fedkd_mpi.communication.world import World
from fedkd_mpi.errors import RunFault, UserError

NUMBER, END, SLOTS = range(3)  # the board: a counter, where the file's free room begins, and of each box ...
START, ROOM, VERSION = range(3)  # ... its first byte, its bytes, how often it was filled anew
LENGTH = 8  # bytes at the start of a box: how long the JSON text behind them is, which says what lies where
LEAST, MOST = 2**22, 2**28  # bytes by which the file grows at least, and at most if that is enough ...
SPARE = 0.25  # ... as a share of what it has; as much is a box given that had to be moved


class SharedArrayStore:
    """`count` boxes in memory, empty at first, of all processes of a node. Made by all processes of the world at once.

    One process at a time may fill a box. Who reads it afterwards must have learnt of that from this shelf (next_index,
    versions), whose lock puts in order what processes see of each other's work.
    """

    remedy = f"enlarge {FOLDER}, or let every process train its own (balance=false)"

    def __init__(self, world: World, count: int, expected: int):
        """Share a file; `expected` is about how many bytes it will hold: it tells which folder is large enough.

        Raises the same UserError everywhere where no file can be made, or the processes of a node cannot all open it.
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
        self._seen: dict[int, tuple[int, dict[str, np.ndarray]]] = {}  # the arrays of a box in some version

    def next_index(self) -> int:
        """Return 0, 1, 2, ...: every call, in whatever process of the node, gets another one."""
        with self._locked():
            number = int(self._table[NUMBER])
            self._table[NUMBER] = number + 1
        return number

    def versions(self, slots: list[int]) -> list[int]:
        """Return how often each box was filled anew, 0 while it is empty."""
        with self._locked():
            return self._slots[slots, VERSION].tolist()

    def prefetch(self, slots: Sequence[int]) -> None:
        """Say which boxes will soon be read: they are at hand."""

    def read(self, slot: int) -> dict[str, np.ndarray]:
        """Return the arrays of a box, {} if it is empty; not copies: what is written to them lies in the box."""
        with self._locked():
            start, room, version = self._slots[slot].tolist()
        if not version:
            return {}
        if self._seen.get(slot, (0,))[0] != version:
            self._map(start + room)
            self._seen[slot] = version, _unpack(np.frombuffer(self._memory, np.uint8, room, start))
        return dict(self._seen[slot][1])

    def update(self, slot: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Put arrays into a box in place of those in it, which they may be: then nothing is copied.

        Only other names, types or shapes make a new version. Raises RunFault where the node has no room for them.
        """
        present = self.read(slot)
        if _layout(present) != _layout(arrays):
            self.put(slot, {name: array.copy() for name, array in arrays.items()} if present else arrays)
            return
        for name, array in arrays.items():
            if array.__array_interface__["data"] != present[name].__array_interface__["data"]:
                present[name][...] = array

    def put(self, slot: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Put arrays, none of which lies in it, into a box as a new version; raises RunFault as update() does."""
        entries, size = shared_memory.lay_out(arrays)
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

    def _write(self, start: int, data: np.ndarray) -> None:
        self._map(start + data.size)
        self._memory[start : start + data.size] = data

    def _make_room(self, needed: int, *, moved: bool) -> tuple[int, int]:
        """First byte and bytes of a new place for a box, at the end of the file; under the lock."""
        start, size = int(self._table[END]), os.fstat(self._file).st_size
        room = padded(needed + int(SPARE * needed) * moved)
        if start + room > size:
            more = max(start + room - size, LEAST, min(int(SPARE * size), MOST))
            try:  # a full tmpfs would show itself as a bus error at the first write
                os.posix_fallocate(self._file, size, more)
            except OSError as error:
                raise self._full(error) from error
        self._table[END] = start + room
        return start, room

    def _map(self, end: int) -> None:
        """Have the file mapped at least so far; arrays that were handed out keep the map that they lie in."""
        if end > len(self._memory):
            self._memory = mmap.mmap(self._file, os.fstat(self._file).st_size)

    def _full(self, error: OSError) -> RunFault:
        return RunFault(f"no room for the states of clients on {self._hostname} ({error.strerror}): {self.remedy}")

    def _create(self, folder: Path, size: int) -> str:
        try:
            descriptor, path = tempfile.mkstemp(prefix="fedkd-clients-", dir=folder)
            os.posix_fallocate(descriptor, 0, size)
            os.close(descriptor)
        except OSError as error:
            where = f"{folder} on {self._hostname} ({error.strerror})"
            raise UserError(f"cannot put the states of clients into {where}: {self.remedy}") from None
        return path

    def _open(self, path: str) -> int:
        try:
            return os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            where = f"{Path(path).parent} ({error.strerror})"
            raise UserError(f"the processes on {self._hostname} do not all see {where}: {self.remedy}") from None

    @staticmethod
    def _folder(expected: int) -> Path:
        """Memory's folder where it has room enough; else TMPDIR, of which the system keeps in memory what it can."""
        try:
            shared_memory.check_room(2 * expected, "")
        except UserError:
            return Path(tempfile.gettempdir())
        return FOLDER if FOLDER.is_dir() else Path(tempfile.gettempdir())

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)


class DiskArrayStore(SharedArrayStore):
    """Boxes in a file under TMPDIR: what they hold takes memory of a process only while that uses it."""

    remedy = "set TMPDIR to a folder with more room, or keep all states in memory (clients_in_memory=null)"

    def prefetch(self, slots: Sequence[int]) -> None:
        """Have the system begin to read boxes from the disk."""
        for start, room, _ in self._slots[slots].tolist():
            os.posix_fadvise(self._file, start, room, os.POSIX_FADV_WILLNEED)

    def read(self, slot: int) -> dict[str, np.ndarray]:
        """Return copies of the arrays of a box, {} if it is empty."""
        with self._locked():
            start, room, version = self._slots[slot].tolist()
        if not version:
            return {}
        block, filled = np.empty(room + ALIGNMENT, np.uint8), 0
        block = block[-block.ctypes.data % ALIGNMENT :][:room]
        while filled < room:
            if not (more := os.preadv(self._file, [block[filled:]], start + filled)):
                raise RunFault(f"the file of the states of clients on {self._hostname} has been cut short")
            filled += more
        return _unpack(block)

    def update(self, slot: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Put arrays into a box in place of those in it, as a new version; raises RunFault where there is no room."""
        self.put(slot, arrays)

    def _write(self, start: int, data: np.ndarray) -> None:
        while data.size:
            try:  # not every file system keeps the room that it was asked for
                written = os.pwrite(self._file, data, start)
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
