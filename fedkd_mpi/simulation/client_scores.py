"""Means over clients of the scores that their own networks have on their own test samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from fedkd_mpi.tasks import Task

ROLES = ("teacher", "student")


class ClientScores:
    """Means over a cohort, plain and weighted by samples, and over all clients using each client's latest score.

    The mean over a cohort alone depends on which clients were sampled. A client without test samples is in no mean. A
    client whose network returned NaN makes its means NaN.
    """

    def __init__(self, task: Task, test_samples: Sequence[int]):
        self._task = task
        self._has_samples = np.array(test_samples) > 0
        shape = len(test_samples), len(ROLES), len(task.metrics)
        self._latest, self._scored = np.full(shape, np.nan), np.zeros(len(test_samples), bool)

    def recall(self, training: Mapping[str, np.ndarray], evaluated: Sequence[bool]) -> None:
        """Restore the latest scores from the table `training` of a log; `evaluated` is True for evaluated rounds."""
        chosen = np.array(evaluated, bool)[training["round"]] if len(training["round"]) else np.zeros(0, bool)
        columns = [[training[f"{role}_{metric}"][chosen] for metric in self._task.metrics] for role in ROLES]
        self._keep(training["client"][chosen], np.moveaxis(np.array(columns, np.float64), -1, 0))

    def of_round(self, clients: Sequence[int], sums: Mapping[str, np.ndarray], evaluated: bool) -> dict[str, float]:
        """Return the score columns of a round; `sums` are its trained clients' sums, [clients, sums] by role."""
        tables = {role: self.metrics(sums[role]) for role in ROLES}
        if evaluated:
            rows = np.array([[tables[role][metric] for metric in self._task.metrics] for role in ROLES])
            self._keep(np.array(clients, np.int64), np.moveaxis(rows, -1, 0))
        complete = evaluated and bool(self._scored[self._has_samples].all())
        found: dict[str, float] = {}
        for row, role in enumerate(ROLES):
            weighted = self.metrics(sums[role].sum(axis=0, keepdims=True))
            for number, metric in enumerate(self._task.metrics):
                everyone = self._latest[self._has_samples, row, number]
                name = f"{role}_{metric}"
                found[name] = mean(tables[role][metric], sums[role])
                found[f"{name}_weighted"] = float(weighted[metric][0]) if len(sums[role]) else np.nan
                found[f"{name}_all"] = float(everyone.mean()) if complete and len(everyone) else np.nan
        return found

    def metrics(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """Return the metrics of each row of the task's sums, NaN for a row without samples."""
        if not sums.any():  # a round without an evaluation has no samples
            return {metric: np.full(len(sums), np.nan) for metric in self._task.metrics}
        rows = [self._task.finish(row) for row in sums]
        return {metric: np.array([row[metric] for row in rows], np.float64) for metric in self._task.metrics}

    def _keep(self, clients: np.ndarray, rows: np.ndarray) -> None:
        for client, row in zip(clients, rows, strict=True):  # in the order of rounds, so the latest score remains
            self._latest[client], self._scored[client] = row, True


def mean(values: np.ndarray, sums: np.ndarray) -> float:
    """Return the mean of the values of rows with samples; NaN if any of the sums is NaN, or if no row has samples."""
    if np.isnan(sums).any():
        return float("nan")
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else np.nan


def nan_scores(
    cohort: Sequence[int], sums: Mapping[str, np.ndarray], chunks: np.ndarray
) -> Iterator[tuple[int | None, str]]:
    """Yield (client, message) for every network whose logits were NaN in an evaluation; client None: global student."""
    for role in ROLES:
        for index in np.flatnonzero(np.isnan(sums[role]).any(axis=1)):
            yield cohort[int(index)], f"the {role}'s logits are NaN on its own test samples: its scores are NaN"
    if np.isnan(chunks).any():
        yield None, "the global student's logits are NaN on the global test set: its scores are NaN"
