"""Metrics of a user's own beside those of the task: their sums are added, logged and reported like the task's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from fedkd_mpi.common.registry import class_with, resolve
from fedkd_mpi.errors import UserError, shown
from fedkd_mpi.models.output import Output
from fedkd_mpi.tasks import Examples, Task

METRIC = class_with("score", "finish")


class WithMetrics:
    """A task whose score() and finish() also include other metrics.

    Each metric is a class like the half of a task that scores: `metrics`, `sums`, score(output, batch), finish(sums)
    and, if smaller values are better, `lower_is_better`. Raises UserError if two metrics have the same name.
    """

    def __init__(self, task: Task, names: Sequence[str]):
        self._task = task
        self._own = [(name, resolve(name, {}, "evaluate.metrics", METRIC)()) for name in names]
        self.metrics, self.sums, lower = tuple(task.metrics), task.sums, tuple(getattr(task, "lower_is_better", ()))
        for name, metric in self._own:
            if missing := [key for key in ("metrics", "sums") if not hasattr(metric, key)]:
                raise UserError(f"evaluate.metrics: {name} has no {missing[0]} (docs/extending.md)")
            if twice := set(metric.metrics) & set(self.metrics):
                raise UserError(f"evaluate.metrics: {name} gives {sorted(twice)[0]}, which is there already")
            self.metrics += tuple(metric.metrics)
            self.sums += metric.sums
            lower += tuple(getattr(metric, "lower_is_better", ()))
        self.lower_is_better = lower

    def __getattr__(self, name: str) -> Any:
        """Return whatever else the task has: input_shape, num_classes, augment, ..."""
        return getattr(self._task, name)

    def score(self, output: Output, batch: Examples) -> np.ndarray:
        parts = [self._task.score(output, batch), *(metric.score(output, batch) for _, metric in self._own)]
        return np.concatenate([np.asarray(part, np.float64) for part in parts])

    def finish(self, sums: np.ndarray) -> dict[str, float]:
        found, at = self._task.finish(sums[: self._task.sums]), self._task.sums
        for name, metric in self._own:
            part = metric.finish(sums[at : at + metric.sums])
            require_declared(f"evaluate.metrics: {name}", part, metric.metrics)
            found, at = found | part, at + metric.sums
        return found

    # Written out, so that this is a Task for type checkers as well.
    def labels(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        return self._task.labels(arrays)

    def prepare(self, arrays: Mapping[str, np.ndarray], indices: np.ndarray, device: str) -> Examples:
        return self._task.prepare(arrays, indices, device)

    def predict(self, model: nn.Module, batch: Examples) -> Output:
        return self._task.predict(model, batch)

    def loss(self, output: Output, batch: Examples) -> Tensor:
        return self._task.loss(output, batch)

    def distance(self, reference: Output, output: Output, batch: Examples) -> Tensor:
        return self._task.distance(reference, output, batch)


def require_declared(who: str, found: Any, metrics: Sequence[str]) -> None:
    """Raise UserError, beginning with `who`, if the result of finish() lacks a name that `metrics` declares."""
    if not isinstance(found, Mapping):
        raise UserError(f"{who}: finish() must return a mapping of names and numbers, not {type(found).__name__}")
    if missing := [name for name in metrics if name not in found]:
        raise UserError(
            f"{who}: finish() returns no {missing[0]}, which `metrics` declares; it returns"
            f" {shown(', '.join(map(str, found)) or 'nothing')}"
        )
