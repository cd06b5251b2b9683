"""What a process knows of the processes of its run, and the collectives that all of them call.

`World` is the contract. `SingleProcessWorld` is one process without MPI, `MpiWorld` (mpi_world.py) is any other run.
"""

from __future__ import annotations

import json
import socket
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

import numpy as np

from fedkd_mpi.common.console import flush, say
from fedkd_mpi.communication.counters import Counters
from fedkd_mpi.communication.process_status import ProcessStatus
from fedkd_mpi.communication.shared_memory import flat_bytes
from fedkd_mpi.errors import UserError

NOTHING = np.empty(0, np.uint8)
Result = TypeVar("Result")


class World(ABC):
    """All processes of a run. The root is rank 0.

    Collectives (all public methods but take_counters, notify, wait_for, fault and end) are called by all, in one order.
    `addresses` are those of every process for datagrams from this one (None: unreachable), `key` authenticates them.
    """

    mpi_rank = 0
    world_size = 1
    local_rank = 0
    node_size = 1

    def __init__(self, library: str):
        self.library, self.counters = library, Counters()
        self.on_fault: Callable[[str], None] = lambda text: None  # rank 0's last act, e.g. closing the log
        self.status = ProcessStatus()  # what a watchdog tells of this process
        self.hostname = socket.gethostname()
        self.hostnames = [self.hostname]
        self.addresses: Sequence[str | None] = ()
        self.key = b""

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

    def allgather(self, own: np.ndarray) -> np.ndarray:
        """Return uint8 [world_size, n] on every process; `own` has n bytes on each; sleep until all have arrived."""
        return self.allgather_small(own, [own.nbytes] * self.world_size).reshape(self.world_size, -1)

    def first_message(self, error: str | None) -> str | None:
        """Return on every process the message of the lowest rank that has one; sleep until all have arrived."""
        text = np.frombuffer((error or "").encode(), np.uint8)
        lengths = self.allgather(np.array([text.size])).view(np.int64)[:, 0]
        if not lengths.any():
            return None
        first = int(np.flatnonzero(lengths)[0])
        message = text.copy() if first == self.mpi_rank else np.empty(lengths[first], np.uint8)
        self._broadcast_from(first, message)
        return message.tobytes().decode()

    def from_root(self, text: str | None) -> str:
        """Return on every process the text of rank 0; sleep until all have arrived."""
        return self.first_message(text if self.is_root else None) or ""

    def collectively(self, work: Callable[[], Result]) -> Result:
        """Return `work()`; if it raised UserError on any process, raise the same UserError on all of them."""
        results: list[Result] = []
        error = None
        try:
            results.append(work())
        except UserError as refusal:
            error = str(refusal)
        if error := self.first_message(error):
            raise UserError(error)
        return results[0]

    def fault(self, text: str) -> NoReturn:
        """End the whole job with exit code 1 and print `text`, which names the location, to stderr once.

        Rank 0 prints the text for a failing process and runs `on_fault`. If rank 0 is too busy, that process prints it.
        """
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
            self._exit()

    def _announced(self, own: np.ndarray, counts: Sequence[int]) -> np.ndarray:
        if own.nbytes != counts[self.mpi_rank]:
            raise ValueError(f"rank {self.mpi_rank} gathers {own.nbytes} bytes, but announced {counts[self.mpi_rank]}")
        return flat_bytes(own)

    @abstractmethod
    def allgather_small(self, own: np.ndarray, counts: Sequence[int]) -> np.ndarray:
        """Return on every process the few bytes of all processes in rank order (uint8); sleep until all have arrived.

        The bytes are part of the messages that announce arrival. `own` is contiguous, of any type; `counts` are the
        bytes of every process, the same on all. Raises ValueError if `own` has another length than announced.
        """

    @abstractmethod
    def broadcast_small(self, buffer: np.ndarray = NOTHING) -> None:
        """Fill the contiguous `buffer`, a few bytes, with rank 0's bytes; the other ranks sleep until they arrive.

        The buffer has the same length on every process. Rank 0 does not wait. Call this after an operation in which
        all ranks have sent to rank 0, or rank 0 may run far ahead of them.
        """

    @abstractmethod
    def gather(
        self, own: np.ndarray, counts: Sequence[int] | None = None, *, payload: bool = False, sleeping: bool = False
    ) -> np.ndarray | None:
        """Return on rank 0 the bytes of all processes in rank order (uint8), None on other ranks.

        `own` is contiguous, of any type. `counts` are the bytes of every process, the same on all; if all pass None,
        the sizes are gathered first. With `sleeping`, processes sleep until all have arrived; without it, they must
        already be synchronised. Raises ValueError if `own` has another length than announced.
        """

    @abstractmethod
    def broadcast(self, buffer: np.ndarray, *, payload: bool = False) -> None:
        """Fill the contiguous `buffer`, of the same length on every process, with rank 0's bytes."""

    @abstractmethod
    def broadcast_on_node(self, message: Any) -> Any:
        """Return the node leader's message (JSON-serialisable) on all processes of its node."""

    @abstractmethod
    def share(
        self, arrays: Mapping[str, np.ndarray] | None = None, meta: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return the node leader's arrays and meta (JSON-serialisable) on all processes of its node.

        Other processes pass nothing. The arrays are read-only views of one copy per node, 64-byte aligned if shared,
        valid until close(). Raises UserError on every process if a node has no room in shared memory.
        """

    @abstractmethod
    def notify(self, *mpi_ranks: int) -> None:
        """Wake processes that may sleep in wait_for()."""

    @abstractmethod
    def wait_for(self, done: Callable[[], bool]) -> None:
        """Sleep until done() is true; not collective.

        Other processes of this node make it true and then notify this one.
        """

    @abstractmethod
    def close(self) -> None:
        """Free the shared memory, which invalidates its views, and finalize MPI if this object initialised it."""

    @abstractmethod
    def _broadcast_from(self, mpi_rank: int, message: np.ndarray) -> None:
        """Fill the uint8 array `message`, of the same length everywhere, with that of one synchronised process."""

    @abstractmethod
    def _exit(self) -> NoReturn:
        """End all processes with exit code 1."""


class SingleProcessWorld(World):
    """A run of one process: collectives transfer nothing."""

    def __init__(self, library: str = "none"):
        super().__init__(library)

    def allgather_small(self, own: np.ndarray, counts: Sequence[int]) -> np.ndarray:
        return self._announced(own, counts)

    def broadcast_small(self, buffer: np.ndarray = NOTHING) -> None:
        pass

    def gather(
        self, own: np.ndarray, counts: Sequence[int] | None = None, *, payload: bool = False, sleeping: bool = False
    ) -> np.ndarray | None:
        return self._announced(own, [own.nbytes] if counts is None else counts)

    def broadcast(self, buffer: np.ndarray, *, payload: bool = False) -> None:
        pass

    def broadcast_on_node(self, message: Any) -> Any:
        return json.loads(json.dumps(message))

    def share(
        self, arrays: Mapping[str, np.ndarray] | None = None, meta: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        return read_only_views(arrays or {}), self.broadcast_on_node(meta or {})

    def notify(self, *mpi_ranks: int) -> None:
        pass

    def wait_for(self, done: Callable[[], bool]) -> None:
        if not done():
            raise RuntimeError("the only process waits for other processes")

    def close(self) -> None:
        self.on_fault = lambda text: None  # the old one may refer to the run, which refers to this object

    def _broadcast_from(self, mpi_rank: int, message: np.ndarray) -> None:
        pass

    def _exit(self) -> NoReturn:
        sys.exit(1)


def read_only_views(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return read-only views of arrays."""
    views = {name: array.view() for name, array in arrays.items()}
    for view in views.values():
        view.flags.writeable = False
    return views
