"""Normalisation layers by name."""

from __future__ import annotations

from torch import nn

MAX_GROUPS = 8


def norm(kind: str, channels: int) -> nn.Module:
    """Return the normalisation "none", "group" or "batch" of feature maps with `channels` channels.

    Groups are the most that divide the channels, at most 8 and of two channels at least: a group of one value would be
    normalised to nothing on a 1x1 feature map.
    """
    if kind == "none":
        return nn.Identity()
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    groups = max(g for g in range(1, MAX_GROUPS + 1) if channels % g == 0 and (g == 1 or 2 * g <= channels))
    return nn.GroupNorm(groups, channels)
