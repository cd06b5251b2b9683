"""Parts that tests name by their dotted path: tasks that misbehave for the client that holds one sample."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from fedkd_mpi.tasks.image_classification import ImageClassification

VICTIM = 0  # a training sample; the client that trains on it is the one that misbehaves


class Poisoned(ImageClassification):
    """One sample is not a number: its client's update cannot be finite."""

    def prepare(self, arrays: Mapping[str, np.ndarray], indices: np.ndarray, device: str) -> dict[str, Tensor]:
        batch = super().prepare(arrays, indices, device)
        batch["x"][np.flatnonzero(indices == VICTIM)] = float("nan")
        return batch


class Breaking(ImageClassification):
    """Raises in the second round that the victim trains in."""

    trained = 0

    def prepare(self, arrays: Mapping[str, np.ndarray], indices: np.ndarray, device: str) -> dict[str, Tensor]:
        if len(arrays["y"]) > 1000 and VICTIM in indices:  # the training arrays, not the test set
            self.trained += 1
            if self.trained == 2:
                raise ZeroDivisionError("no such thing")
        return super().prepare(arrays, indices, device)
