"""Seconds by phase of a round."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """`with watch("encode"):` adds the block's wall seconds to that phase; take() returns the sums and starts anew."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.started = time.perf_counter()

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] += time.perf_counter() - began

    def add(self, phase: str, seconds: float) -> None:
        """Add seconds that were measured elsewhere."""
        self.seconds[phase] += seconds

    def take(self) -> dict[str, float]:
        """Return the seconds of every phase since the last call, "total" among them."""
        now = time.perf_counter()
        taken = defaultdict(float, self.seconds, total=now - self.started)
        self.seconds, self.started = defaultdict(float), now
        return taken
