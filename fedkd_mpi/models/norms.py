"""Normalisation layers by name."""

from __future__ import annotations

from torch import nn

MAX_GROUPS = 8


def norm(kind: str, channels: int) -> nn.Module:
    """Return the normalisation "none", "group" or "batch" for feature maps with `channels` channels.

    The number of groups is the largest divisor of `channels` up to 8 with at least two channels per group: on a 1x1
    feature map, a group of one channel would be normalised to zero.
    """
    if kind == "none":
        return nn.Identity()
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    groups = max(g for g in range(1, MAX_GROUPS + 1) if channels % g == 0 and (g == 1 or 2 * g <= channels))
    return nn.GroupNorm(groups, channels)
