"""Between a GPU and the host memory that MPI sends from: through pages that the GPU may copy from and to by itself."""

from __future__ import annotations

import torch
from torch import Tensor


def to_host(tensor: Tensor) -> Tensor:
    """Return the values on the CPU: the tensor itself if it is there, else a copy in pinned memory.

    torch keeps pinned blocks that are given back for the next that ask: a steady round pins nothing.
    """
    tensor = tensor.detach()
    if tensor.device.type == "cpu":
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor)


def to_device(tensor: Tensor, device: str) -> Tensor:
    """Return the values of a CPU tensor on a device: the tensor itself for the CPU, else a copy by pinned memory."""
    return tensor if device == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
