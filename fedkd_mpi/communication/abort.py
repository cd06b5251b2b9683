"""Reports the failure of a process once, even if the other processes wait for it or several processes fail."""

from __future__ import annotations

import time
from types import ModuleType
from typing import Any

FAULT = 3  # tag
GRACE = 3.0  # seconds in which rank 0, unless it is busy, receives the report of a failing process and ends the job
POLL_INTERVAL = 0.01  # seconds


class AbortChannel:
    """Carries failure reports from failing processes to rank 0, in messages with a tag of their own."""

    def __init__(self, mpi: ModuleType, communicator: Any):
        self._mpi, self._communicator = mpi, communicator

    def tell(self, text: str) -> None:
        """Send the text to rank 0; return only if the job has not ended after GRACE seconds.

        Higher ranks are notified too. They wait twice as long, so that only the lowest failing rank reports.
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
        """Return on rank 0 the report of a failed process, or None if no process has failed."""
        status = self._mpi.Status()
        message = self._communicator.Improbe(self._mpi.ANY_SOURCE, FAULT, status)
        if message is None:
            return None
        text = bytearray(status.Get_count(self._mpi.BYTE))
        message.Recv([text, self._mpi.BYTE])
        return text.decode()
