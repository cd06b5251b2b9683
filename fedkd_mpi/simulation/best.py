"""The best round by the task's first metric or stop.metric: found on rank 0 as rounds are logged, its networks kept."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from fedkd_mpi.fault_tolerance.manifest import BEST
from fedkd_mpi.simulation.early_stop import EarlyStop, watched
from fedkd_mpi.simulation.snapshot import about, networks

if TYPE_CHECKING:
    from fedkd_mpi.fault_tolerance.checkpoint import Checkpoints
    from fedkd_mpi.simulation.state import Simulation


class BestRound:
    """Keeps the networks of the best of the rounds that rank 0 has logged, as `checkpoint.best` says which.

    The global student is written by rank 0 alone, which has nothing else to do while clients train; with "all" the
    processes write theirs together, at the next boundary between rounds. `alone` are the log's checkpoints as seen by
    one process, `together` those of all; `scores` are those of the rounds that a resumed run goes on after. A score
    that only equals the best changes nothing.
    """

    def __init__(self, run: Simulation, alone: Checkpoints, together: Checkpoints, scores: Iterable[float] = ()):
        self.run, self.alone, self.together = run, alone, together
        kept = run.config.checkpoint.best
        self.with_teachers = kept == "all"
        self.on = self.with_teachers or (kept == "student" and run.exchange is not None and run.method.predicts)
        self.column, self._sign = watched(run)
        self._best = -math.inf
        self.due = False  # whether the last logged round is the best, and its networks are not yet written
        scores = list(scores)
        self.early = EarlyStop(run, scores)
        for score in scores:
            self._rises(score)

    def logged(self, row: Mapping[str, Any]) -> None:
        """Take the row of `rounds` that rank 0 has just logged, while its networks are still those of that round."""
        self.early.logged(row[self.column])
        if not self.on or not self._rises(row[self.column]):
            return
        if self.with_teachers:
            self.due = True
        else:
            self.alone.save(networks(self.run, teachers=False), int(row["round"]) + 1, about(self.run), BEST)

    def save(self, done: int) -> None:
        """Write the networks of all processes where the last round is the best. Collective; nothing but with "all"."""
        if not self.with_teachers:
            return
        due, self.due = self.due, False
        if self.run.world.first_message("due" if due else None):
            self.together.save(networks(self.run, teachers=True), done, about(self.run), BEST)

    def _rises(self, score: float) -> bool:
        rises = self._sign * score > self._best  # a NaN, of a round without an evaluation, does not
        if rises:
            self._best = self._sign * score
        return rises
