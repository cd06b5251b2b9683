"""Image classification: pixels become standardised numbers, training batches may be augmented."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedkd_mpi.datasets import checks
from fedkd_mpi.tasks.augmentation import random_crop_and_flip
from fedkd_mpi.tasks.classification import Classification
from fedkd_mpi.tasks.reading import as_batch


class ImageClassification(Classification):
    """Samples are "x" uint8 [n, C, H, W] and "y" int64 [n]; meta has classes, and scale, mean and std of pixels."""

    check = staticmethod(checks.check_images)

    def __init__(self, meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray]):
        self.input_shape = tuple(arrays["x"].shape[1:])
        self.num_classes = len(meta["classes"])
        mean, std = (torch.tensor(meta[key], dtype=torch.float32)[:, None, None] for key in ("mean", "std"))
        self._factor, self._offset = meta["scale"] / std, -mean / std

    def prepare(self, arrays: Mapping[str, np.ndarray], indices: np.ndarray, device: str) -> dict[str, Tensor]:
        x = self.preprocess(torch.from_numpy(arrays["x"][indices]).to(device))
        return {"x": x, "y": torch.from_numpy(arrays["y"][indices]).to(device)}

    def preprocess(self, raw: Any) -> Tensor:
        """Return pixels [N, C, H, W], as the data set yields them, as the network takes them: normalised by channel."""
        pixels = as_batch(raw, self.input_shape).float()
        x = pixels.mul(self._factor.to(pixels.device)).add_(self._offset.to(pixels.device))
        return x.contiguous(memory_format=torch.channels_last)

    def augment(self, batch: dict[str, Tensor], rng: np.random.Generator) -> dict[str, Tensor]:
        """Return the batch randomly cropped after padding by an eighth of the side, and randomly mirrored."""
        return {**batch, "x": random_crop_and_flip(batch["x"], rng)}
