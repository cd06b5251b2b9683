"""How far a list of runs has come: which one begins, how many are done, and about how long the others will take."""

from __future__ import annotations

import threading

from fedkd_mpi.common.console import say
from fedkd_mpi.common.units import seconds_text


class Course:
    """Counts the runs of a sweep as they begin and end, for the user; `jobs` run at a time."""

    def __init__(self, total: int, jobs: int):
        self._total, self._jobs, self._begun, self._done, self._seconds = total, jobs, 0, 0, 0.0
        self._lock = threading.Lock()

    def begins(self, name: str, state: str) -> None:
        """Say which run begins, and in which state it is."""
        with self._lock:
            self._begun += 1
            say(f"{name}: run {self._begun} of {self._total} begins ({state})")

    def ends(self, seconds: float) -> str:
        """Return how many runs are done after one that took so long, and about how long the others will take."""
        with self._lock:
            self._done, self._seconds = self._done + 1, self._seconds + seconds
            left = self._seconds / self._done * (self._total - self._done) / self._jobs
            rest = f", about {seconds_text(left)} left" if self._done < self._total else ""
            return f"{self._done} of {self._total} runs{rest}"
