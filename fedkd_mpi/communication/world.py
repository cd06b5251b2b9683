"""The processes of a run: buffer collectives, sleeping waits, byte counters, shared arrays, the end of a failing job.

Waiting takes nearly no CPU time. Each process sends rank 0 a message when it arrives at a collective and sleeps
(wakeup.py) until rank 0 answers. These messages carry small data such as lengths. Payloads are then moved by blocking
MPI calls.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NoReturn

import numpy as np

from fedkd_mpi.common.console import flush, say
from fedkd_mpi.communication import shared_memory
from fedkd_mpi.communication.abort import GRACE, AbortChannel
from fedkd_mpi.communication.counters import Counters
from fedkd_mpi.communication.process_status import ProcessStatus
from fedkd_mpi.communication.shared_memory import flat_bytes
from fedkd_mpi.communication.wakeup import WakeupSocket, introduce
from fedkd_mpi.errors import UserError

COUNT_LIMIT = 2**31 - 1  # bytes per MPI call: Open MPI 5 has no large-count (MPI 4) functions
HOSTNAME_BYTES = 64  # HOST_NAME_MAX of Linux
PRINTING = 0.2  # seconds for the launcher to read printed output: MPICH's launcher drops the rest at an abort
ARRIVED, GO = 1, 2  # tags
NOTHING = np.empty(0, np.uint8)


class World:
    """All processes of a run, or this one alone where `mpi` (mpi4py.MPI) is None: then collectives move nothing.

    The root is rank 0. Collectives (all public methods but take_counters and fault) are called by all, in one order.
    """

    def __init__(self, mpi: ModuleType | None = None, *, library: str = "none", finalize: bool = False):
        self.library, self.counters, self.count_limit = library, Counters(), COUNT_LIMIT
        self.on_fault: Callable[[str], None] = lambda text: None  # rank 0's last act, e.g. closing the log
        self.status = ProcessStatus()  # what a watchdog tells of this process
        self.mpi_rank, self.world_size, self.local_rank, self.node_size = 0, 1, 0, 1
        self._mpi, self._finalize, self._windows = mpi, finalize, []
        self._abort_channel = self.wakeup = None
        if mpi is not None:
            # Payloads have a communicator of their own, so that MPI monitoring tools can count them separately.
            self._control, self._payload = mpi.COMM_WORLD.Dup(), mpi.COMM_WORLD.Dup()
            self._control.Set_name("fedkd control")
            self._payload.Set_name("fedkd payload")
            self._abort_channel = AbortChannel(mpi, self._control)
            self._node = mpi.COMM_WORLD.Split_type(mpi.COMM_TYPE_SHARED, key=mpi.COMM_WORLD.rank)
            self.mpi_rank, self.world_size = self._control.rank, self._control.size
            self.local_rank, self.node_size = self._node.rank, self._node.size
            self.wakeup = WakeupSocket(root=self.is_root, one_node=self.one_node)
        self.hostname = socket.gethostname()
        name = np.frombuffer(self.hostname.encode()[:HOSTNAME_BYTES].ljust(HOSTNAME_BYTES, b"\0"), np.uint8)
        self.hostnames = [row.tobytes().rstrip(b"\0").decode() for row in self.allgather(name)]
        # The address of every process for datagrams from this one, and the key that authenticates them.
        self.addresses, self.key = [], b""
        if self.wakeup:
            self.addresses, self.key = introduce(self.wakeup, self.allgather, self.hostnames, self.hostname)

    @property
    def is_root(self) -> bool:
        """Whether this is rank 0, the server."""
        return self.mpi_rank == 0

    @property
    def one_node(self) -> bool:
        """Whether all processes are on this node."""
        return self.node_size == self.world_size

    @property
    def is_node_leader(self) -> bool:
        """Whether this is the process of its node that reads the data."""
        return self.local_rank == 0

    def take_counters(self) -> Counters:
        """Return the counts since the last call and reset the counters."""
        taken, self.counters = self.counters, Counters()
        return taken

    def barrier(self) -> None:
        """Sleep until every process has called barrier()."""
        self.allgather_small(NOTHING, [0] * self.world_size)

    def allgather_small(self, own: np.ndarray, counts: Sequence[int]) -> np.ndarray:
        """Return on every process the few bytes of all processes in rank order (uint8); sleep until all have arrived.

        The bytes are part of the messages that announce arrival. `own` is contiguous, of any type; `counts` are the
        bytes of every process, the same on all. Raises ValueError if `own` has another length than announced.
        """
        flat = self._announced(own, counts)
        if self.world_size == 1:
            return flat
        everyone = np.empty(sum(counts), np.uint8)
        with self.status.in_collective():
            if self.is_root:
                parts = np.split(everyone, np.cumsum(counts)[:-1])
                parts[0][:] = flat
                receives = [self._control.Irecv(part, rank, ARRIVED) for rank, part in enumerate(parts) if rank]
                self._sleep_until(lambda: self._mpi.Request.Testall(receives))
                self._let_go(everyone)
                self.counters.add(received=everyone.size - flat.size)
            else:
                arrived = self._control.Isend(flat, 0, ARRIVED)
                self.wakeup.notify(0)
                self._wait_for_go(everyone)
                arrived.Wait()
                self.counters.add(sent=flat.size)
        return everyone

    def broadcast_small(self, buffer: np.ndarray = NOTHING) -> None:
        """Fill the contiguous `buffer`, a few bytes, with rank 0's bytes; the other ranks sleep until they arrive.

        The buffer has the same length on every process. Rank 0 does not wait. Call this after an operation in which
        all ranks have sent to rank 0, or rank 0 may run far ahead of them.
        """
        if self.world_size > 1:
            with self.status.in_collective():
                (self._let_go if self.is_root else self._wait_for_go)(flat_bytes(buffer))

    def gather(
        self, own: np.ndarray, counts: Sequence[int] | None = None, *, payload: bool = False, sleeping: bool = False
    ) -> np.ndarray | None:
        """Return on rank 0 the bytes of all processes in rank order (uint8), None on other ranks.

        `own` is contiguous, of any type. `counts` are the bytes of every process, the same on all; if all pass None,
        the sizes are gathered first. With `sleeping`, processes sleep until all have arrived; without it, they must
        already be synchronised. Raises ValueError if `own` has another length than announced.
        """
        if counts is None:
            counts = self.allgather(np.array([own.nbytes])).view(np.int64)[:, 0]
        elif sleeping:
            self.barrier()
        flat = self._announced(own, counts)
        if self.world_size == 1:
            return flat
        starts = np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))
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

    def allgather(self, own: np.ndarray) -> np.ndarray:
        """Return uint8 [world_size, n] on every process; `own` has n bytes on each; sleep until all have arrived."""
        return self.allgather_small(own, [own.nbytes] * self.world_size).reshape(self.world_size, -1)

    def broadcast(self, buffer: np.ndarray, *, payload: bool = False) -> None:
        """Fill the contiguous `buffer`, of the same length on every process, with rank 0's bytes."""
        if self.world_size > 1:
            with self.status.in_collective():
                self._broadcast(self._payload if payload else self._control, flat_bytes(buffer), 0, payload)

    def first_message(self, error: str | None) -> str | None:
        """Return on every process the message of the lowest rank that has one; sleep until all have arrived."""
        text = np.frombuffer((error or "").encode(), np.uint8)
        lengths = self.allgather(np.array([text.size])).view(np.int64)[:, 0]
        if not lengths.any():
            return None
        first = int(np.flatnonzero(lengths)[0])
        message = text.copy() if first == self.mpi_rank else np.empty(lengths[first], np.uint8)
        if self.world_size > 1:
            self._broadcast(self._control, message, first)
        return message.tobytes().decode()

    def collectively(self, work: Callable[[], Any]) -> Any:
        """Return `work()`; if it raised UserError on any process, raise the same UserError on all of them."""
        result = error = None
        try:
            result = work()
        except UserError as refusal:
            error = str(refusal)
        if error := self.first_message(error):
            raise UserError(error)
        return result

    def broadcast_on_node(self, message: Any) -> Any:
        """Return the node leader's message (JSON-serialisable) on all processes of its node."""
        text = np.frombuffer(json.dumps(message).encode(), np.uint8)
        if self.node_size > 1:
            length = np.array([text.size])
            self._broadcast(self._node, flat_bytes(length), 0)
            text = text.copy() if self.is_node_leader else np.empty(length[0], np.uint8)
            self._broadcast(self._node, text, 0)
        return json.loads(text.tobytes())

    def share(
        self, arrays: dict[str, np.ndarray] | None = None, meta: dict | None = None
    ) -> tuple[dict[str, np.ndarray], dict]:
        """Return the node leader's arrays and meta (JSON-serialisable) on all processes of its node.

        Other processes pass nothing. The arrays are read-only views of one copy per node, 64-byte aligned if shared,
        valid until close(). Raises UserError on every process if a node has no room in shared memory.
        """
        arrays = arrays or {}
        entries, size = shared_memory.block_layout(arrays)
        entries, size, meta = self.broadcast_on_node([entries, size, meta or {}])
        if self.node_size == 1:
            shared = {name: array.view() for name, array in arrays.items()}
            self.collectively(lambda: None)
        else:
            self.collectively(lambda: self.is_node_leader and shared_memory.check_room(size, self.hostname))
            window = self._mpi.Win.Allocate_shared(size if self.is_node_leader else 0, 1, comm=self._node)
            self._windows.append(window)
            shared = shared_memory.views(entries, window.Shared_query(0)[0])
            window.Fence()
            for name, array in arrays.items():
                shared[name][...] = array
        self.barrier()
        if self.node_size > 1:
            window.Fence()
        for array in shared.values():
            array.flags.writeable = False
        return shared, meta

    def wait_for(self, done: Callable[[], bool]) -> None:
        """Sleep until done() is true; not collective.

        Other processes of this node make it true and then notify this one.
        """
        with self.status.held_up():
            self._sleep_until(done, same_node=True)

    def fault(self, text: str) -> NoReturn:
        """End the whole job with exit code 1 and print `text`, which names the location, to stderr once.

        Rank 0 prints the text for a failing process and runs `on_fault`. If rank 0 is too busy, that process prints it.
        """
        try:
            if self._abort_channel and not self.is_root:
                self._abort_channel.tell(text)
        finally:
            self.end(text)

    def close(self) -> None:
        """Free the shared memory, which invalidates its views, and finalize MPI if this object initialised it."""
        self.barrier()
        self.on_fault = lambda text: None  # the old one may refer to the run, which refers to this object
        while self._windows:
            self._windows.pop().Free()
        if self._mpi is not None:
            self.wakeup.close()
            for communicator in (self._node, self._payload, self._control):
                communicator.Free()
        if self._finalize:
            self._mpi.Finalize()

    def _announced(self, own: np.ndarray, counts: Sequence[int]) -> np.ndarray:
        if own.nbytes != counts[self.mpi_rank]:
            raise ValueError(f"rank {self.mpi_rank} gathers {own.nbytes} bytes, but announced {counts[self.mpi_rank]}")
        return flat_bytes(own)

    def _let_go(self, flat: np.ndarray) -> None:
        others = range(1, self.world_size)
        going = [self._control.Isend(flat, rank, GO) for rank in others]
        self.wakeup.notify(*others)
        self._mpi.Request.Waitall(going)
        self.counters.add(sent=flat.size * len(others))

    def _wait_for_go(self, flat: np.ndarray) -> None:
        self._sleep_until(self._control.Irecv(flat, 0, GO).Test)
        self.counters.add(received=flat.size)

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

    def end(self, text: str) -> NoReturn:
        """End the whole job as fault() does, without rank 0; for rank 0 itself, or if rank 0 does not respond."""
        try:
            say(text, error=True)
            if self.is_root:
                self.on_fault(text)
        except Exception as error:  # the job must end whatever fails here
            say(f"a second error while the job ends: {error!r}", error=True)
        finally:
            flush()
            if self._mpi is None:
                sys.exit(1)
            time.sleep(PRINTING)
            self._mpi.COMM_WORLD.Abort(1)
            time.sleep(GRACE)  # MPICH's Abort returns; its launcher ends the process a moment later
            os._exit(1)
