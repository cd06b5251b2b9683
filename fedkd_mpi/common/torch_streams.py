"""Seeding of torch's default generators from random streams; separate, because reports use streams without torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fedkd_mpi.common.random_streams import torch_seed


@contextmanager
def torch_scope(seed: int, purpose: str, *key: int, device: str = "cpu") -> Iterator[None]:
    """Seed torch's default generators (CPU and the device) from the stream inside the block; restore them after it.

    Module constructors and dropout have no generator argument and use the default generators. Nothing may draw from
    them outside such a block.
    """
    import torch

    word = torch_seed(seed, purpose, *key)
    with torch.random.fork_rng(devices=[] if device == "cpu" else [device]):
        # Not torch.manual_seed: for unused kinds of devices it would store each seed with a traceback.
        torch.default_generator.manual_seed(word)
        if device != "cpu":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(word)
        yield
