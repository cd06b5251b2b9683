"""Counters of the bytes that a process moved over MPI and of the time that it waited."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Counters:
    """Bytes that a process sent and received through MPI, and the seconds that it slept in waits.

    payload_* count the part of these bytes that belongs to messages between server and clients.
    """

    bytes_sent: int = 0
    bytes_received: int = 0
    payload_bytes_sent: int = 0
    payload_bytes_received: int = 0
    seconds_waited: float = 0.0

    def add(self, *, sent: int = 0, received: int = 0, payload: bool = False) -> None:
        """Add the bytes of one collective operation."""
        self.bytes_sent += sent
        self.bytes_received += received
        self.payload_bytes_sent += sent * payload
        self.payload_bytes_received += received * payload
