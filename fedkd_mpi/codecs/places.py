"""Rising places among many, as Rice-coded gaps: about 8 bits per place where 1 % are set (Golomb 1966; Rice 1979).

b u5 | all quotients gap >> b, each as zeros and a one | the b low bits of each gap, lowest first
"""

from __future__ import annotations

import numpy as np

from fedkd_mpi.codecs.rice import bits_of, numbers_of
from fedkd_mpi.codecs.wire import WireError

HEAD = 5  # bits that hold b


def encode(places: np.ndarray) -> bytes:
    """Return the bytes of strictly rising places (int64, from 0); they do not contain how many there are."""
    gaps = np.diff(places, prepend=-1) - 1
    if not gaps.size:
        return b""
    widest = int(gaps.sum() // gaps.size).bit_length() + 1
    costs = [int((gaps >> width).sum()) + width * gaps.size for width in range(widest + 1)]
    width = int(np.argmin(costs))
    ends = np.cumsum((gaps >> width) + 1)
    unary = np.zeros(int(ends[-1]), np.uint8)
    unary[ends - 1] = 1
    return np.packbits(np.concatenate([bits_of(np.array([width]), HEAD), unary, bits_of(gaps, width)])).tobytes()


def decode(data: np.ndarray, count: int, below: int) -> np.ndarray:
    """Return `count` strictly rising places (int64) below a limit; raises WireError if the bytes are no such places.

    The bytes are at most as many as such places can take, or are refused before they are unpacked.
    """
    if not count:
        if data.size:
            raise WireError(f"{data.size} bytes of places, but no entries")
        return np.empty(0, np.int64)
    width = int(numbers_of(np.unpackbits(data[:1])[:HEAD], 1, HEAD)[0]) if data.size else 0
    least = HEAD + count * (1 + width)
    if not -(-least // 8) <= data.size <= -(-(least + (below >> width)) // 8):
        raise WireError(f"{data.size} bytes do not hold {count} places below {below}")
    bits = np.unpackbits(data)[HEAD:]
    ends = np.flatnonzero(bits)[:count]
    start = int(ends[-1]) + 1 if ends.size else 0
    if ends.size < count or -(-(HEAD + start + count * width) // 8) != data.size:
        raise WireError("the places and their bytes have different ends")
    low = numbers_of(bits[start : start + count * width], count, width)
    places = np.cumsum((np.diff(ends, prepend=-1) - 1 << width) + low + 1) - 1
    if places[-1] >= below:
        raise WireError(f"a place is not below {below}")
    return places
