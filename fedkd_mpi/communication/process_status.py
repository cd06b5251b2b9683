"""Where a process is at the moment: what a watchdog tells of it, and what an error names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class ProcessStatus:
    """Where a process is: round, phase, client, the number of collectives it has entered, how deep it is in one."""

    round: int = 0
    phase: str = "start"
    client: int | None = None
    arrived: int = 0
    waiting: int = 0

    def at(self, round: int, phase: str, client: int | None = None) -> None:
        """Note what comes next."""
        self.round, self.phase, self.client = round, phase, client

    @contextmanager
    def in_collective(self) -> Iterator[None]:
        """Note the arrival at a collective, and inside the block that others are waited for."""
        self.arrived += 1
        with self.held_up():
            yield

    @contextmanager
    def held_up(self) -> Iterator[None]:
        """Note inside the block that others are waited for."""
        self.waiting += 1
        try:
            yield
        finally:
            self.waiting -= 1

    def __str__(self) -> str:
        client = "" if self.client is None else f", client {self.client}"
        return f"round {self.round}, {self.phase}{client}"
