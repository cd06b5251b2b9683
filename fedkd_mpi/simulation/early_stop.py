"""The value that says which round is the best, and the end of a run in which it has not become better for long."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from fedkd_mpi.errors import UserError

if TYPE_CHECKING:
    from fedkd_mpi.simulation.state import Simulation

LOSSES = ("teacher_loss", "student_loss")
SUFFIXES = ("", "_weighted", "_all")  # of the scores of clients: of the cohort's, by samples, of all clients


class Watched(NamedTuple):
    """A column of the table `rounds`; with the factor `sign` more is better."""

    column: str
    sign: float


def watched(run: Simulation) -> Watched:
    """Return the column that says which round is the best: by stop.metric, or the task's first metric.

    A metric's name stands for the score of the global student; without one, for that of all clients' teachers or
    students on their own samples. Raises UserError naming stop.metric if the run has no such column.
    """
    lower = getattr(run.task, "lower_is_better", ())
    own = "student" if run.config.averages else "teacher"
    by_name = {metric: f"global_student_{metric}" if run.scores_student else f"{own}_{metric}_all"
               for metric in run.task.metrics}  # fmt: skip
    roles = ["student"] if run.exchange and run.method.predicts else []
    roles += [] if run.config.averages else ["teacher"]
    columns = {f"{role}_{metric}{suffix}": metric for role in roles for metric in by_name for suffix in SUFFIXES}
    columns |= {by_name[metric]: metric for metric in by_name}
    name = run.config.stop.metric or run.task.metrics[0]
    losses = [f"{role}_loss" for role in roles]
    if name not in (*by_name, *columns, *losses):
        known = ", ".join([*by_name, *losses, *columns])
        raise UserError(f"stop.metric={name} is no value of this run's rounds; known are {known}")
    column = by_name.get(name, name)
    return Watched(column, -1.0 if column in LOSSES or columns.get(column) in lower else 1.0)


class EarlyStop:
    """Says on rank 0 when a run has ended by stop.patience: a function of the rounds in the log alone.

    `values` are those of the rounds that a resumed run goes on after.
    """

    def __init__(self, run: Simulation, values: Iterable[float] = ()):
        self._run, self._settings, self._watched = run, run.config.stop, watched(run)
        self.on = self._settings.metric is not None
        self._best, self._best_round, self._waited, self._next = -math.inf, 0, 0, 0
        for value in values:
            self.logged(value)

    def logged(self, value: float) -> None:
        """Take the value of the round that was logged last; a score that is not a number is not better."""
        index, self._next = self._next, self._next + 1
        if self._watched.column not in LOSSES and not self._run.evaluates(index):
            return
        better = self._watched.sign * value
        if better > self._best + self._settings.min_delta:
            self._best, self._best_round, self._waited = better, index, 0
        else:
            self._waited += 1

    def reason(self) -> str | None:
        """Return why the run ends after the rounds so far, None if it does not."""
        if not self.on or self._waited < self._settings.patience:
            return None
        best = f"{self._watched.column} was best after round {self._best_round + 1}"
        least = f" by more than {self._settings.min_delta:g}" if self._settings.min_delta else ""
        rounds = f"after {self._next} of {self._run.config.rounds} rounds"
        return f"ended early {rounds}: {best}, {self._waited} evaluations have not exceeded it{least} (stop.patience)"
