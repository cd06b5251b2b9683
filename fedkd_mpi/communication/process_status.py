"""The current status of a process, as a watchdog reports it and an error names it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class ProcessStatus:
    """The round, phase and client that a process works on, and whether it waits for others.

    Rounds count from 0, and from 1 in text. `arrived` is the number of collectives that it has entered. `waiting` is
    above 0 while it waits for other processes. `trained` is the number of clients that it has trained in this round.
    """

    round: int = 0
    phase: str = "start"
    client: int | None = None
    arrived: int = 0
    waiting: int = 0
    trained: int = 0

    def at(self, round: int, phase: str, client: int | None = None) -> None:
        """Set round, phase and client."""
        if round != self.round:
            self.trained = 0
        self.round, self.phase, self.client = round, phase, client

    @contextmanager
    def in_collective(self) -> Iterator[None]:
        """Count the arrival at a collective and mark the process as waiting inside the block."""
        self.arrived += 1
        with self.held_up():
            yield

    @contextmanager
    def held_up(self) -> Iterator[None]:
        """Mark the process as waiting for others inside the block."""
        self.waiting += 1
        try:
            yield
        finally:
            self.waiting -= 1

    def __str__(self) -> str:
        client = "" if self.client is None else f", client {self.client}"
        return f"round {self.round + 1}, {self.phase}{client}"
