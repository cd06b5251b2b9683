"""Random augmentation of image batches, as tensor operations on the device of the batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

PADDING_SHARE = 8  # padding is side / 8: 4 pixels for 32x32 images, as in He et al. (2016), section 4.2


def random_crop_and_flip(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Return images [N, C, H, W], each zero-padded, randomly cropped to its size, and mirrored with probability 1/2.

    The same generator gives the same images on every device.
    """
    count, _, height, width = x.shape
    up, side = height // PADDING_SHARE, width // PADDING_SHARE
    top, left = rng.integers(0, 2 * up + 1, count), rng.integers(0, 2 * side + 1, count)
    across = np.arange(width) + np.zeros((count, 1), np.int64)
    mirrored = rng.random(count) < 0.5
    across[mirrored] = across[mirrored, ::-1]
    rows = torch.from_numpy(top[:, None] + np.arange(height)).to(x.device)
    columns = torch.from_numpy(left[:, None] + across).to(x.device)
    padded = functional.pad(x, (side, side, up, up)).permute(0, 2, 3, 1)
    images = torch.arange(count, device=x.device)[:, None, None]
    return padded[images, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def random_flips(images: Sequence[Tensor], rng: np.random.Generator) -> list[Tensor]:
    """Return tensors [N, C, H, W] mirrored left-right and top-bottom, each with probability 1/2, all alike."""
    for axis in (3, 2):
        mirrored = torch.from_numpy(rng.random(len(images[0])) < 0.5).to(images[0].device)[:, None, None, None]
        images = [torch.where(mirrored, image.flip(axis), image) for image in images]
    return list(images)
