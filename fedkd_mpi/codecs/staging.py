"""Copies between a GPU and host memory through pinned memory."""

from __future__ import annotations

import torch
from torch import Tensor


def to_host(tensor: Tensor) -> Tensor:
    """Return the values on the CPU: the tensor itself if it is on the CPU, else a copy in pinned memory.

    torch reuses freed pinned blocks, so that after the first rounds no memory is pinned anew.
    """
    tensor = tensor.detach()
    if tensor.device.type == "cpu":
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor)


def to_device(tensor: Tensor, device: str) -> Tensor:
    """Return the values of a CPU tensor on a device: the tensor itself for the CPU, else a copy via pinned memory."""
    return tensor if device == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
