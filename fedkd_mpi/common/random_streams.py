"""Random streams keyed by (seed, purpose, round, client, ...); no stream depends on draws from another stream."""

from __future__ import annotations

import hashlib
from functools import cache

import numpy as np


@cache
def _word(purpose: str) -> int:
    # A digest, because hash() differs between processes.
    return int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=8).digest(), "little")


def _sequence(seed: int, purpose: str, key: tuple[int, ...]) -> np.random.SeedSequence:
    return np.random.SeedSequence([seed, _word(purpose), len(key), *key])


def generator(seed: int, purpose: str, *key: int) -> np.random.Generator:
    """Return the NumPy generator of one stream; the same arguments always give the same numbers.

    `key` are non-negative integers, usually (round, client).
    """
    return np.random.Generator(np.random.Philox(_sequence(seed, purpose, key)))


def torch_seed(seed: int, purpose: str, *key: int) -> int:
    """Return a 63-bit seed for a torch generator of the stream."""
    return int(_sequence(seed, purpose, key).generate_state(1, np.uint64)[0]) >> 1
