"""What a process moved over MPI since it was last asked."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Counters:
    """Bytes a process handed to MPI and got from it (payload_*: the part flagged so), seconds of its sleeping waits."""

    bytes_sent: int = 0
    bytes_received: int = 0
    payload_bytes_sent: int = 0
    payload_bytes_received: int = 0
    seconds_waited: float = 0.0

    def add(self, *, sent: int = 0, received: int = 0, payload: bool = False) -> None:
        """Count one collective."""
        self.bytes_sent += sent
        self.bytes_received += received
        self.payload_bytes_sent += sent * payload
        self.payload_bytes_received += received * payload
