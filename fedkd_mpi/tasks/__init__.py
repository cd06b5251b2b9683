"""What is learned: how samples become batches, which loss they have, how predictions are scored; a file per task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from fedkd_mpi.common.registry import class_with, resolve
from fedkd_mpi.datasets import checks
from fedkd_mpi.models.output import Output

Examples = dict[str, Tensor]  # tensors with one common first dimension, resident on the device
TASKS = {
    "denoising": "fedkd_mpi.tasks.denoising:Denoising",
    "image_classification": "fedkd_mpi.tasks.image_classification:ImageClassification",
    "text_classification": "fedkd_mpi.tasks.text_classification:TextClassification",
    "ner": "fedkd_mpi.tasks.ner:NamedEntityRecognition",
    "news": "fedkd_mpi.tasks.news:NewsRecommendation",
}
TASK = class_with("labels", "prepare", "predict", "loss", "distance", "score", "finish")


class Task(Protocol):
    """Built on every rank as Task(meta, arrays) from the data set's meta mapping and its training arrays.

    `metrics` names what finish() gives, `sums` is the number of sums that score() returns; models are built from
    `input_shape` and `num_classes`. `lower_is_better`, which may be left out, names the metrics of which less is
    better. A task may also have augment(batch, rng), which data.augment=true asks for: it returns a training batch
    varied at random, with a NumPy generator of the client and round to draw from. `inputs` names the arrays whose
    numbers must be finite ("x" and "ids" where it is left out), and a static method check(name, train, test, meta)
    raises UserError where arrays or meta of the data set `name` are not what the task takes; both are asked before
    the data are shared, of a user's own data or task.
    """

    metrics: tuple[str, ...]
    sums: int
    input_shape: tuple[int, ...]
    num_classes: int

    def labels(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the class of every sample (int64 [n]), which the partition and the label histogram go by."""
        ...

    def prepare(self, arrays: Mapping[str, np.ndarray], indices: np.ndarray, device: str) -> Examples:
        """Return the samples of the indices as tensors ready for the model."""
        ...

    def predict(self, model: nn.Module, batch: Examples) -> Output:
        """Return the model's output for a batch."""
        ...

    def loss(self, output: Output, batch: Examples) -> Tensor:
        """Return the supervised loss, a mean over the batch (equations 1 and 2)."""
        ...

    def distance(self, reference: Output, output: Output, batch: Examples) -> Tensor:
        """Return how far `output` is from the peer's, as a constant `reference` (equations 3 and 4)."""
        ...

    def score(self, output: Output, batch: Examples) -> np.ndarray:
        """Return float64 [sums] that add up over batches and that finish() understands."""
        ...

    def finish(self, sums: np.ndarray) -> dict[str, float]:
        """Return the metrics of added-up sums; NaN where they rest on no sample."""
        ...


def find(name: str) -> type[Task]:
    """Return the task that the configuration key `task` names; raises UserError if there is none."""
    return resolve(name, TASKS, "task", TASK)


def check_data(task: str, name: str, train: checks.Part, test: checks.Part, meta: Mapping[str, Any]) -> None:
    """Raise UserError where the data set `name` is not what the task declares that it takes."""
    found = find(task)
    if check := getattr(found, "check", None):
        check(name, train, test, meta)
    checks.check_inputs(name, train, test, getattr(found, "inputs", ("x", "ids")))
