"""Rice codes for small integer matrices, for which the table of a Huffman code would be too large.

Each row has one parameter b. Signs are mapped to non-negative symbols (0, -1, 1, -2, ... = 0, 1, 2, 3, ...). A symbol
is a quotient in unary and b plain bits (Rice 1979, Some practical universal noiseless coding techniques).

    b u4 per row | all quotients, each as zeros and a one | all plain bits, row by row, lowest bit first
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedkd_mpi.codecs.wire import WireError

WIDEST = 15  # plain bits per symbol at most


def encode(matrices: Sequence[np.ndarray]) -> bytes:
    """Return the bytes of int16 matrices [k, m]; the bytes do not contain the shapes."""
    widths, quotients, plain = [], [np.empty(0, np.int64)], []
    for matrix in matrices:
        signed = matrix.astype(np.int64)
        folded = np.where(signed < 0, -2 * signed - 1, 2 * signed)
        costs = [(folded >> width).sum(1) + width * folded.shape[1] for width in range(WIDEST + 1)]
        own = np.argmin(costs, axis=0)
        widths.append(own)
        quotients.append((folded >> own[:, None]).reshape(-1))
        plain += [bits_of(row, width) for row, width in zip(folded, own, strict=True)]
    ends = np.cumsum(np.concatenate(quotients) + 1)
    unary = np.zeros(ends[-1] if ends.size else 0, np.uint8)
    unary[ends - 1] = 1
    table = np.concatenate([np.empty(0, np.int64), *widths])
    bits = np.concatenate([bits_of(table, 4), unary, *plain])
    return np.packbits(bits).tobytes()


def decode(data: np.ndarray, shapes: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """Return the int16 matrices of the given shapes; raises WireError if the bytes are invalid for them."""
    rows, count = sum(shape[0] for shape in shapes), sum(rows * columns for rows, columns in shapes)
    if 8 * data.size < 4 * rows + count:
        raise WireError("symbols end early")
    bits = np.unpackbits(data)
    widths = numbers_of(bits[: 4 * rows], rows, 4)
    ends = np.flatnonzero(bits[4 * rows :])[:count]
    if ends.size < count:
        raise WireError("symbols end early")
    at = 4 * rows + (int(ends[-1]) + 1 if count else 0)
    lengths = np.repeat([columns for _, columns in shapes], [own for own, _ in shapes])
    if -(-(at + int((widths * lengths).sum())) // 8) != data.size:
        raise WireError("the symbols and their bytes have different ends")
    quotients = np.diff(ends, prepend=-1) - 1
    matrices, row, taken = [], 0, 0
    for own, columns in shapes:
        folded = quotients[taken : taken + own * columns].reshape(own, columns).astype(np.int64)
        taken += own * columns
        for index in range(own):
            width = int(widths[row + index])
            folded[index] = (folded[index] << width) + numbers_of(bits[at : at + width * columns], columns, width)
            at += width * columns
        row += own
        if folded.size and int(folded.max()) > 2 * np.iinfo(np.int16).max:
            raise WireError("a symbol is out of its range")
        matrices.append(np.where(folded & 1, -(folded + 1) // 2, folded // 2).astype(np.int16))
    return matrices


def bits_of(values: np.ndarray, width: int) -> np.ndarray:
    """Return the low bits of non-negative integers, lowest first: uint8 [values * width] of 0 and 1."""
    bits = np.empty((values.size, width), np.uint8)
    for place in range(width):
        bits[:, place] = values >> place & 1
    return bits.reshape(-1)


def numbers_of(bits: np.ndarray, count: int, width: int) -> np.ndarray:
    """Return the `count` integers (int64) of bits_of()."""
    numbers = np.zeros(count, np.uint8 if width <= 8 else np.int64)
    for place in range(width):
        numbers |= bits[place::width].astype(numbers.dtype) << place
    return numbers.astype(np.int64)
