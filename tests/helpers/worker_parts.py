"""Parts that tests name by their dotted path: tasks that lack something or misbehave for a client; unlabelled data."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from fedkd_mpi.communication.launch import launched
from fedkd_mpi.datasets import Dataset
from fedkd_mpi.models.output import Output
from fedkd_mpi.tasks.image_classification import ImageClassification

VICTIMS = [0]  # training samples; the client that trains on one of them is the one that misbehaves


class Poisoned(ImageClassification):
    """The victims' pixels are not numbers: their client's update cannot be finite."""

    def prepare(self, arrays: Mapping[str, np.ndarray], indices: np.ndarray, device: str) -> dict[str, Tensor]:
        batch = super().prepare(arrays, indices, device)
        batch["x"][np.flatnonzero(np.isin(indices, VICTIMS))] = float("nan")
        return batch


class Breaking(ImageClassification):
    """Raises in the second round that the victim trains in."""

    trained = 0

    def prepare(self, arrays: Mapping[str, np.ndarray], indices: np.ndarray, device: str) -> dict[str, Tensor]:
        # the training arrays, not the test set, and all of a client's samples, not the two that networks are tried on
        if len(arrays["y"]) > 1000 and len(indices) > 2 and np.isin(VICTIMS, indices).any():
            self.trained += 1
            if self.trained == 2:
                raise ZeroDivisionError("no such thing")
        return super().prepare(arrays, indices, device)


class Slow(ImageClassification):
    """Makes rank 1 wait half a second for every batch of training samples."""

    def prepare(self, arrays: Mapping[str, np.ndarray], indices: np.ndarray, device: str) -> dict[str, Tensor]:
        if len(arrays["y"]) > 1000 and launched()[0] == 1:
            time.sleep(0.5)
        return super().prepare(arrays, indices, device)


class Bare(ImageClassification):
    """Knows no augmentation."""

    augment = None


class Unsmoothed(ImageClassification):
    """Knows no label smoothing."""

    label_smoothing = None


class Forgetful(nn.Module):
    """A model with dropout."""

    hidden_sizes = (8,)

    def __init__(self, input_shape: Sequence[int], num_classes: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), 8), nn.Dropout(0.5))
        self.head = nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Output:
        hidden = self.layers(x)
        return Output(self.head(hidden), (hidden,))


def unlabelled(root: Path | None, seed: int) -> Dataset:
    """Images without their classes."""
    arrays = {"x": np.zeros((40, 1, 8, 8), np.uint8)}
    return Dataset(arrays, arrays, {"classes": ["a", "b"], "scale": 1.0, "mean": [0.0], "std": [1.0]})
