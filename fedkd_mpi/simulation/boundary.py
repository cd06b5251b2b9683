"""What happens between two rounds: the decision whether to stop, and the checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from fedkd_mpi.fault_tolerance.stopping import StopRequests
from fedkd_mpi.simulation.snapshot import about, shards

if TYPE_CHECKING:
    from fedkd_mpi.fault_tolerance.checkpoint import Checkpoints
    from fedkd_mpi.simulation.best import BestRound
    from fedkd_mpi.simulation.state import Simulation


MARGIN = 1.2  # the next round may take so many times as long as the longest so far
CLOSING = 2.0  # seconds to close the log and to leave MPI


class Boundary:
    """Called by all processes between two rounds: saves a due checkpoint and returns the reason to stop, if any.

    `settle` writes pending rows to the log, so that a checkpoint never holds more rounds than the log. `saved` is the
    number of rounds in the newest checkpoint, None without a checkpoint; `best` saves the best round. `enough` says
    why the run has ended before its last round, if stop.metric or privacy.max_epsilon has ended it.
    """

    def __init__(
        self,
        run: Simulation,
        checkpoints: Checkpoints,
        stop: StopRequests,
        saved: int | None,
        settle: Callable[[], None],
        best: BestRound,
    ):
        self.run, self.checkpoints, self.stop, self.saved, self.settle = run, checkpoints, stop, saved, settle
        self.best = best
        self.enough: str | None = None
        self.seconds_saving = 0.0
        self._seconds_round = self._seconds_save = 0.0  # the longest round and the longest save so far
        self._left: float | None = None

    def __call__(self, done: int) -> str | None:
        """Return the reason to stop after `done` rounds, None to continue; the same on every process. Collective."""
        config, now = self.run.config, time.monotonic()
        if self.best.early.on and done < config.rounds:
            self.settle()
            self.enough = self.run.world.first_message(self.best.early.reason())
        if self.enough is None and self.run.protection:
            self.enough = self.run.protection.enough(done)
        ended = done == config.rounds or self.enough is not None
        if self._left is not None:
            self._seconds_round = max(self._seconds_round, now - self._left)
        reason = None if ended else self.run.world.first_message(self.stop.reason(self._needed()))
        if self.best.with_teachers:
            self.settle()
            self.best.save(done)
        every = config.checkpoint.every
        due = reason or (done and ((ended and config.checkpoint.last) or (every and done % every == 0)))
        if self.saved != done and due:
            self._save(done)
        self._left = time.monotonic()
        return self.enough or reason

    def _needed(self) -> float:
        if self._seconds_round == 0:  # no round measured yet; a run that stops before its first round makes no progress
            return 0.0
        return MARGIN * self._seconds_round + (self._seconds_save or self._seconds_round) + CLOSING

    def _save(self, done: int) -> None:
        began = time.monotonic()
        self.settle()
        self.run.world.status.at(max(done - 1, 0), "writing the checkpoint")
        self.checkpoints.save(shards(self.run), done, about(self.run))
        self.saved = done
        seconds = time.monotonic() - began
        self.seconds_saving += seconds
        self._seconds_save = max(self._seconds_save, seconds)
