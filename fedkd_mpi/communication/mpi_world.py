"""The processes of an MPI run: buffer collectives, sleeping waits, byte counters, shared arrays, the end of a job.

Waiting takes nearly no CPU time. Each process sends rank 0 a message when it arrives at a collective and sleeps
(wakeup.py) until rank 0 answers. These messages carry small data such as lengths. Payloads are then moved by blocking
MPI calls.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, NoReturn

import numpy as np

from fedkd_mpi.communication import shared_memory
from fedkd_mpi.communication.abort import GRACE, AbortChannel
from fedkd_mpi.communication.shared_memory import flat_bytes
from fedkd_mpi.communication.wakeup import WakeupSocket, introduce
from fedkd_mpi.communication.world import NOTHING, World, read_only_views

COUNT_LIMIT = 2**31 - 1  # bytes per MPI call: Open MPI 5 has no large-count (MPI 4) functions
HOSTNAME_BYTES = 64  # HOST_NAME_MAX of Linux
PRINTING = 0.2  # seconds for the launcher to read printed output: MPICH's launcher drops the rest at an abort
ARRIVED, GO = 1, 2  # tags


class MpiWorld(World):
    """All processes of MPI_COMM_WORLD; made by all of them at once. `mpi` is mpi4py.MPI, initialised.

    `finalize` says whether close() also ends MPI in this process.
    """

    def __init__(self, mpi: ModuleType, *, library: str, finalize: bool = False):
        super().__init__(library)
        self.count_limit = COUNT_LIMIT
        self._mpi, self._finalize = mpi, finalize
        self._windows: list[Any] = []
        # Payloads have a communicator of their own, so that MPI monitoring tools can count them separately.
        self._control, self._payload = mpi.COMM_WORLD.Dup(), mpi.COMM_WORLD.Dup()
        self._control.Set_name("fedkd control")
        self._payload.Set_name("fedkd payload")
        self._abort_channel = AbortChannel(mpi, self._control)
        self._node = mpi.COMM_WORLD.Split_type(mpi.COMM_TYPE_SHARED, key=mpi.COMM_WORLD.rank)
        self.mpi_rank, self.world_size = self._control.rank, self._control.size
        self.local_rank, self.node_size = self._node.rank, self._node.size
        self.wakeup = WakeupSocket(root=self.is_root, one_node=self.one_node)
        name = np.frombuffer(self.hostname.encode()[:HOSTNAME_BYTES].ljust(HOSTNAME_BYTES, b"\0"), np.uint8)
        self.hostnames = [row.tobytes().rstrip(b"\0").decode() for row in self.allgather(name)]
        self.addresses, self.key = introduce(self.wakeup, self.allgather, self.hostnames, self.hostname)

    def allgather_small(self, own: np.ndarray, counts: Sequence[int]) -> np.ndarray:
        flat = self._announced(own, counts)
        everyone = np.empty(sum(counts), np.uint8)
        with self.status.in_collective():
            if self.is_root:
                parts = np.split(everyone, np.cumsum(counts)[:-1])
                parts[0][:] = flat
                receives = [self._control.Irecv(part, rank, ARRIVED) for rank, part in enumerate(parts) if rank]
                self._sleep_until(lambda: bool(self._mpi.Request.Testall(receives)))
                self._let_go(everyone)
                self.counters.add(received=everyone.size - flat.size)
            else:
                arrived = self._control.Isend(flat, 0, ARRIVED)
                self.notify(0)
                self._wait_for_go(everyone)
                arrived.Wait()
                self.counters.add(sent=flat.size)
        return everyone

    def broadcast_small(self, buffer: np.ndarray = NOTHING) -> None:
        with self.status.in_collective():
            (self._let_go if self.is_root else self._wait_for_go)(flat_bytes(buffer))

    def gather(
        self, own: np.ndarray, counts: Sequence[int] | None = None, *, payload: bool = False, sleeping: bool = False
    ) -> np.ndarray | None:
        if counts is None:
            counts = self.allgather(np.array([own.nbytes])).view(np.int64)[:, 0].tolist()
        elif sleeping:
            self.barrier()
        flat = self._announced(own, counts)
        starts = np.array([0, *np.cumsum(counts, dtype=np.int64)])
        first, total = int(starts[self.mpi_rank]), int(starts[-1])
        whole = np.empty(total, np.uint8) if self.is_root else None
        channel = self._payload if payload else self._control
        # MPI counts and displacements have 32 bits. Gathering in windows keeps both small for any sizes.
        with self.status.in_collective():
            for low in range(0, total, self.count_limit):
                edges = np.clip(starts, low, low + self.count_limit)
                piece = flat[edges[self.mpi_rank] - first : edges[self.mpi_rank + 1] - first]
                into = [np.diff(edges).tolist(), (edges[:-1] - low).tolist(), self._mpi.BYTE]
                window = None if whole is None else [whole[low : low + self.count_limit], *into]
                channel.Gatherv([piece, self._mpi.BYTE], window)
        sent, received = (0, total - flat.size) if self.is_root else (flat.size, 0)
        self.counters.add(sent=sent, received=received, payload=payload)
        return whole

    def broadcast(self, buffer: np.ndarray, *, payload: bool = False) -> None:
        with self.status.in_collective():
            self._broadcast(self._payload if payload else self._control, flat_bytes(buffer), 0, payload)

    def broadcast_on_node(self, message: Any) -> Any:
        text = np.frombuffer(json.dumps(message).encode(), np.uint8)
        length = np.array([text.size])
        self._broadcast(self._node, flat_bytes(length), 0)
        text = text.copy() if self.is_node_leader else np.empty(length[0], np.uint8)
        self._broadcast(self._node, text, 0)
        return json.loads(text.tobytes())

    def share(
        self, arrays: Mapping[str, np.ndarray] | None = None, meta: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        arrays = arrays or {}
        entries, size = shared_memory.block_layout(arrays)
        entries, size, meta = self.broadcast_on_node([entries, size, meta or {}])
        self.collectively(lambda: self._check_room(size))
        if self.node_size > 1:
            window = self._mpi.Win.Allocate_shared(size if self.is_node_leader else 0, 1, comm=self._node)
            self._windows.append(window)
            shared = shared_memory.views(entries, window.Shared_query(0)[0])
            window.Fence()
            for name, array in arrays.items():
                shared[name][...] = array
            self.barrier()
            window.Fence()
            arrays = shared
        else:
            self.barrier()
        return read_only_views(arrays), meta or {}

    def notify(self, *mpi_ranks: int) -> None:
        self.wakeup.notify(*mpi_ranks)

    def wait_for(self, done: Callable[[], bool]) -> None:
        with self.status.held_up():
            self._sleep_until(done, same_node=True)

    def fault(self, text: str) -> NoReturn:
        try:
            if not self.is_root:
                self._abort_channel.tell(text)
        finally:
            self.end(text)

    def close(self) -> None:
        self.barrier()
        self.on_fault = lambda text: None  # the old one may refer to the run, which refers to this object
        while self._windows:
            self._windows.pop().Free()
        self.wakeup.close()
        for communicator in (self._node, self._payload, self._control):
            communicator.Free()
        if self._finalize:
            self._mpi.Finalize()

    def _check_room(self, size: int) -> None:
        if self.node_size > 1 and self.is_node_leader:
            shared_memory.check_room(size, self.hostname)

    def _let_go(self, flat: np.ndarray) -> None:
        others = range(1, self.world_size)
        going = [self._control.Isend(flat, rank, GO) for rank in others]
        self.notify(*others)
        self._mpi.Request.Waitall(going)
        self.counters.add(sent=flat.size * len(others))

    def _wait_for_go(self, flat: np.ndarray) -> None:
        self._sleep_until(self._control.Irecv(flat, 0, GO).Test)
        self.counters.add(received=flat.size)

    def _broadcast_from(self, mpi_rank: int, message: np.ndarray) -> None:
        self._broadcast(self._control, message, mpi_rank)

    def _broadcast(self, communicator: Any, flat: np.ndarray, root: int, payload: bool = False) -> None:
        for low in range(0, flat.size, self.count_limit):
            communicator.Bcast([flat[low : low + self.count_limit], self._mpi.BYTE], root)
        if communicator.rank == root:
            self.counters.add(sent=flat.size * (communicator.size - 1), payload=payload)
        else:
            self.counters.add(received=flat.size, payload=payload)

    def _sleep_until(self, done: Callable[[], bool], *, same_node: bool = False) -> None:
        self.counters.seconds_waited += self.wakeup.sleep_until(done, self._hear, same_node=same_node)

    def _hear(self) -> None:
        if self.is_root and (text := self._abort_channel.heard()):
            self.end(text)

    def _exit(self) -> NoReturn:
        time.sleep(PRINTING)
        self._mpi.COMM_WORLD.Abort(1)
        time.sleep(GRACE)  # MPICH's Abort returns; its launcher ends the process a moment later
        os._exit(1)
