"""How the message of a failing process is printed once, though all others may be waiting and several may fail."""

from __future__ import annotations

import time
from types import ModuleType
from typing import Any

FAULT = 3  # tag
GRACE = 3.0  # seconds for rank 0, where it is not busy, to take over the last words of a failing process
POLL_INTERVAL = 0.01  # seconds


class AbortChannel:
    """Texts on their way from failing processes to rank 0, beside the traffic of a communicator."""

    def __init__(self, mpi: ModuleType, communicator: Any):
        self._mpi, self._communicator = mpi, communicator

    def tell(self, text: str) -> None:
        """Send the text to rank 0 and return only if the job has not ended within the grace.

        Higher ranks are told as well: of several that fail while rank 0 is busy, the lowest returns first.
        """
        start, patience = time.perf_counter(), GRACE
        higher = range(self._communicator.rank + 1, self._communicator.size)
        sends = [self._communicator.Isend(text.encode(), 0, FAULT)]
        sends += [self._communicator.Isend(b"", rank, FAULT) for rank in higher]
        while time.perf_counter() - start < patience:
            time.sleep(POLL_INTERVAL)
            self._mpi.Request.Testall(sends)
            if self._communicator.Iprobe(self._mpi.ANY_SOURCE, FAULT):
                patience = 2 * GRACE

    def heard(self) -> str | None:
        """Return, on rank 0, the text of a process that has failed, None while there is none."""
        status = self._mpi.Status()
        message = self._communicator.Improbe(self._mpi.ANY_SOURCE, FAULT, status)
        if message is None:
            return None
        text = bytearray(status.Get_count(self._mpi.BYTE))
        message.Recv([text, self._mpi.BYTE])
        return text.decode()
