"""Random streams keyed by (seed, purpose, round, client, ...): what one gives never depends on who else draws."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np


@cache
def _word(purpose: str) -> int:
    # A digest, not hash(): the latter differs between processes.
    return int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=8).digest(), "little")


def _sequence(seed: int, purpose: str, key: tuple[int, ...]) -> np.random.SeedSequence:
    return np.random.SeedSequence([seed, _word(purpose), len(key), *key])


def generator(seed: int, purpose: str, *key: int) -> np.random.Generator:
    """Return the NumPy generator of one stream; the same arguments always give the same numbers.

    `key` holds non-negative integers, usually (round, client).
    """
    return np.random.Generator(np.random.Philox(_sequence(seed, purpose, key)))


def torch_seed(seed: int, purpose: str, *key: int) -> int:
    """Return a 63-bit seed for a torch generator of the stream."""
    return int(_sequence(seed, purpose, key).generate_state(1, np.uint64)[0] >> 1)


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
