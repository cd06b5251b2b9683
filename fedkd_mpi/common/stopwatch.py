"""Measurement of the seconds per phase of a round."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """`with watch("encode"):` adds the wall time of the block to that phase; take() returns and resets the sums.

    The time of a phase inside another phase is added to the inner phase only.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.started = time.perf_counter()
        self._within = 0.0  # seconds of the phases that ended inside the current one

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        began, outside, self._within = time.perf_counter(), self._within, 0.0
        try:
            yield
        finally:
            taken = time.perf_counter() - began
            self.seconds[phase] += taken - self._within
            self._within = outside + taken

    def add(self, phase: str, seconds: float) -> None:
        """Add seconds that were measured elsewhere."""
        self.seconds[phase] += seconds

    def take(self) -> dict[str, float]:
        """Return the seconds of every phase since the last call, including "total"."""
        now = time.perf_counter()
        taken = defaultdict(float, self.seconds, total=now - self.started)
        self.seconds, self.started = defaultdict(float), now
        return taken
