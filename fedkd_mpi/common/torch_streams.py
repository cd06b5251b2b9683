"""Torch's default generators, keyed as the random streams are; apart, because reports draw without torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fedkd_mpi.common.random_streams import torch_seed


@contextmanager
def torch_scope(seed: int, purpose: str, *key: int, device: str = "cpu") -> Iterator[None]:
    """Key torch's default generators (CPU and the device's) to the stream inside the block; put them back after it.

    Module constructors and dropout offer no generator argument; nothing may draw from the default generator
    outside such a block.
    """
    import torch

    word = torch_seed(seed, purpose, *key)
    with torch.random.fork_rng(devices=[] if device == "cpu" else [device]):
        # torch.manual_seed is for all kinds of devices: those not in use keep each seed, with a traceback, for later
        torch.default_generator.manual_seed(word)
        if device != "cpu":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(word)
        yield
