"""Tasks: they convert samples to batches and define the loss and the scores; one file per task."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol, cast

import numpy as np
from torch import Tensor, nn

from fedkd_mpi.common.options import own_options
from fedkd_mpi.common.registry import class_with, resolve
from fedkd_mpi.datasets import checks
from fedkd_mpi.errors import UserError
from fedkd_mpi.models.output import Output

Examples = dict[str, Tensor]  # tensors with a common first dimension, on the device
TASKS = {
    "denoising": "fedkd_mpi.tasks.denoising:Denoising",
    "image_classification": "fedkd_mpi.tasks.image_classification:ImageClassification",
    "tabular": "fedkd_mpi.tasks.tabular:Tabular",
    "text_classification": "fedkd_mpi.tasks.text_classification:TextClassification",
    "ner": "fedkd_mpi.tasks.ner:NamedEntityRecognition",
    "news": "fedkd_mpi.tasks.news:NewsRecommendation",
}
TASK = class_with("labels", "prepare", "predict", "loss", "distance", "score", "finish")


class Task(Protocol):
    """Created on every rank as Task(meta, arrays) from the meta mapping and the training arrays of the data set.

    Keys of `task` beside its name are further arguments, checked by the class's model `Options` if it has one.
    `metrics` are the names in the result of finish(), `sums` is the number of sums that score() returns. Models are
    built from `input_shape` and `num_classes`. Optional attributes: `lower_is_better` are the metrics for which less is
    better. `label_smoothing`, needed for local.label_smoothing, is a number that is set before loss() is first called.
    augment(batch, rng), needed for data.augment=true, returns a randomly varied training batch; rng is a NumPy
    generator of the client and round. `inputs` are the names of the arrays that must be finite (default "x" and "ids").
    The static method check(name, train, test, meta) raises UserError if arrays or meta of the data set `name` are
    invalid for the task. `inputs` and check() are used before the data are shared, for a user's data set or task.
    preprocess(raw) returns the input of the network (a tensor, or a tuple of tensors) for samples as the data set
    yields them; exported networks have it.
    """

    metrics: tuple[str, ...]
    sums: int
    input_shape: tuple[int, ...]
    num_classes: int

    def labels(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the class of every sample (int64 [n]), which partition and label histogram use."""
        ...

    def prepare(self, arrays: Mapping[str, np.ndarray], indices: np.ndarray, device: str) -> Examples:
        """Return the samples of the indices as tensors for the model, on the device."""
        ...

    def predict(self, model: nn.Module, batch: Examples) -> Output:
        """Return the model's output for a batch."""
        ...

    def loss(self, output: Output, batch: Examples) -> Tensor:
        """Return the supervised loss, a mean over the batch (equations 1 and 2)."""
        ...

    def distance(self, reference: Output, output: Output, batch: Examples) -> Tensor:
        """Return the distance of `output` from the peer's output, a constant `reference` (equations 3 and 4)."""
        ...

    def score(self, output: Output, batch: Examples) -> np.ndarray:
        """Return float64 [sums], which are added over batches and passed to finish()."""
        ...

    def finish(self, sums: np.ndarray) -> dict[str, float]:
        """Return the metrics of added sums; NaN without samples."""
        ...


def find(name: str) -> Callable[..., Task]:
    """Return the class of the task that the configuration key `task` names; raises UserError if there is none."""
    return resolve(name, TASKS, "task", TASK)


def make(name: str, meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray], options: Mapping[str, Any]) -> Task:
    """Return the task of a data set with its options; raises UserError if the class does not take them."""
    kind = find(name)
    given = own_options(kind, options, name, "task")
    try:
        inspect.signature(kind).bind(meta, arrays, **given)
    except TypeError as error:
        raise UserError(f"task={name}: {error}") from None
    return kind(meta, arrays, **given)


class _Smoothing(Protocol):
    label_smoothing: float


def build(
    name: str,
    meta: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    metrics: Sequence[str] = (),
    label_smoothing: float = 0.0,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> Task:
    """Return the task of a data set, with its options and a user's further metrics.

    Raises UserError naming local.label_smoothing for a task without label smoothing.
    """
    from fedkd_mpi.tasks.own_metrics import WithMetrics

    task = make(name, meta, arrays, options)
    if label_smoothing:
        if getattr(task, "label_smoothing", None) is None:
            raise UserError(f"local.label_smoothing: task={name} has no label smoothing; set local.label_smoothing=0")
        cast("_Smoothing", task).label_smoothing = label_smoothing
    return WithMetrics(task, metrics) if metrics else task


def check_data(task: str, name: str, train: checks.Part, test: checks.Part, meta: Mapping[str, Any]) -> None:
    """Raise UserError if the data set `name` does not meet the requirements that the task declares."""
    found = find(task)
    if check := getattr(found, "check", None):
        check(name, train, test, meta)
    checks.check_inputs(name, train, test, getattr(found, "inputs", ("x", "ids")))
