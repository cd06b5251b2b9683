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


class ImageClassification(Classification):
    """Samples are "x" uint8 [n, C, H, W] and "y" int64 [n]; meta has classes, and scale, mean and std of pixels."""

    check = staticmethod(checks.check_images)

    def __init__(self, meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray]):
        self.input_shape = tuple(arrays["x"].shape[1:])
        self.num_classes = len(meta["classes"])
        mean, std = (torch.tensor(meta[key], dtype=torch.float32)[:, None, None] for key in ("mean", "std"))
        self._factor, self._offset = meta["scale"] / std, -mean / std

    def prepare(self, arrays: Mapping[str, np.ndarray], indices: np.ndarray, device: str) -> dict[str, Tensor]:
        pixels = torch.from_numpy(arrays["x"][indices]).to(device).float()
        x = pixels.mul_(self._factor.to(device)).add_(self._offset.to(device))
        x = x.contiguous(memory_format=torch.channels_last)
        return {"x": x, "y": torch.from_numpy(arrays["y"][indices]).to(device)}

    def augment(self, batch: dict[str, Tensor], rng: np.random.Generator) -> dict[str, Tensor]:
        """Return the batch randomly cropped after padding by an eighth of the side, and randomly mirrored."""
        return {**batch, "x": random_crop_and_flip(batch["x"], rng)}
