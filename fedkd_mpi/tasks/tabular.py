"""Classification of rows of numbers, each feature with a mean and a deviation of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedkd_mpi.datasets import checks
from fedkd_mpi.tasks.classification import Classification
from fedkd_mpi.tasks.reading import as_batch


class Tabular(Classification):
    """Samples are "x" float32 [n, features] and "y" int64 [n]; meta gives mean and std of features, and classes."""

    check = staticmethod(checks.check_features)

    def __init__(self, meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray]):
        self.input_shape = tuple(arrays["x"].shape[1:])
        self.num_classes = len(meta["classes"])
        self._mean, self._std = (torch.tensor(meta[key], dtype=torch.float32) for key in ("mean", "std"))

    def prepare(self, arrays: Mapping[str, np.ndarray], indices: np.ndarray, device: str) -> dict[str, Tensor]:
        x = self.preprocess(torch.from_numpy(arrays["x"][indices]).to(device))
        return {"x": x, "y": torch.from_numpy(arrays["y"][indices]).to(device)}

    def preprocess(self, raw: Any) -> Tensor:
        """Return rows [N, features], as the data set yields them, as the network takes them: standardised."""
        x = as_batch(raw, self.input_shape).float()
        return x.sub(self._mean.to(x.device)).div_(self._std.to(x.device))
