"""Entropy coding of integer matrices: segments of similar magnitude are Huffman-coded, small matrices Rice-coded.

Rows are in descending order of energy. The first quarter of a matrix's rows tells the receiver which columns are large.
The columns of the other rows are sorted by that and divided into quarters. Each row, or quarter of a row, is a segment.
Segments whose mean magnitudes are in the same octave form a class. The largest magnitude of a class determines how many
symbols fit into a byte. Each class is a deflate block and so has a Huffman code of its own.

    quarters u8, deflate( classes u8, largest magnitude u16 per class, class u8 per segment | symbols of class 0 | ... )
    0 u8, Rice codes (rice.py), if these are shorter
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from fedkd_mpi.codecs import rice
from fedkd_mpi.codecs.wire import WireError

LARGEST = 32767  # magnitude of a symbol at most
RICE, QUARTERS = 0, 4
PLAIN_BELOW = 8192  # symbols; with fewer, the table of a code for pairs of large symbols takes more than it saves


def encode(matrices: Sequence[np.ndarray]) -> np.ndarray:
    """Return the bytes (uint8) of int16 matrices [k, m]; the bytes do not contain the shapes."""
    count = sum(matrix.size for matrix in matrices)
    # One code for all, a code per octave, or sorted columns in addition: more symbols justify a finer division.
    trials = [(1, 0.0), (1, 1.0)] if count < 2 * PLAIN_BELOW else [(QUARTERS, 1.0)]
    coded = [bytes([parts]) + _encode(matrices, parts, octaves) for parts, octaves in trials]
    if count < PLAIN_BELOW:
        coded.append(bytes([RICE]) + rice.encode(matrices))
    return np.frombuffer(min(coded, key=len), np.uint8)


def decode(data: np.ndarray, shapes: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """Return the int16 matrices of the given shapes; raises WireError if the bytes are invalid for them."""
    parts = int(data[0]) if data.size else -1
    if parts not in (RICE, 1, QUARTERS):
        raise WireError("symbols start with an unknown division")
    if parts == RICE:
        return rice.decode(data[1:], shapes)
    stream = _inflate(data[1:], 1 + 2 * 255 + sum(2 * rows * columns + rows * QUARTERS for rows, columns in shapes))
    classes = int(stream[0]) if stream.size else 0
    sizes = [_segment_sizes(shape, parts) for shape in shapes]
    lengths = np.concatenate(sizes) if sizes else np.empty(0, np.int64)
    start = 1 + 2 * classes
    if stream.size < start + lengths.size:
        raise WireError("symbols end within their table of classes")
    largest = stream[1:start].view("<u2").astype(np.int64)
    member = stream[start : start + lengths.size]
    if member.size and int(member.max()) >= classes:
        raise WireError("a segment of symbols has no class")
    flat = np.zeros(int(lengths.sum()), np.int16)
    ends = np.cumsum(lengths)
    at = start + lengths.size
    for index, limit in enumerate(largest):
        own = np.flatnonzero(member == index)
        values, at = _unpack(stream, at, int(limit), int(lengths[own].sum()))
        taken = 0
        for segment in own:
            size = lengths[segment]
            flat[ends[segment] - size : ends[segment]] = values[taken : taken + size]
            taken += size
    if at != stream.size:
        raise WireError(f"{stream.size - at} bytes follow the symbols")
    return _restore(flat, shapes, parts)


def _encode(matrices: Sequence[np.ndarray], parts: int, octaves: float) -> bytes:
    flat, lengths = _arrange(matrices, parts)
    starts = np.cumsum(lengths) - lengths
    if not flat.size:
        return _deflate([np.array([0], np.uint8)])
    magnitude = np.abs(flat)
    means = np.add.reduceat(magnitude, starts, dtype=np.float64) / lengths
    octave = np.where(means > 0, np.rint(octaves * np.log2(means + 0.05)), -99).astype(np.int64)
    kinds, member = np.unique(octave, return_inverse=True)
    blocks, largest = [], np.zeros(len(kinds), "<u2")
    for index in range(len(kinds)):
        own = np.flatnonzero(member == index)
        values = np.concatenate([flat[starts[s] : starts[s] + lengths[s]] for s in own])
        largest[index] = np.abs(values).max()
        blocks.append(_pack(values, int(largest[index])))
    table = np.concatenate([np.array([len(kinds)], np.uint8), largest.view(np.uint8), member.astype(np.uint8)])
    return _deflate([table, *blocks])


def _head_rows(rows: int, parts: int) -> int:
    return rows if parts == 1 else -(-rows // 4)


def _segment_sizes(shape: tuple[int, int], parts: int) -> np.ndarray:
    rows, columns = shape
    head = _head_rows(rows, parts)
    tail = np.diff(np.arange(parts + 1) * columns // parts)
    sizes = np.concatenate([np.full(head, columns), np.tile(tail, rows - head)])
    return sizes[sizes > 0]


def _order(head: np.ndarray) -> np.ndarray:
    """Return the columns by ascending magnitude in the first rows, in integers so that the receiver finds the same."""
    magnitude = np.abs(head.astype(np.int64))
    shares = (magnitude << 20) // np.maximum(magnitude.sum(1, keepdims=True), 1)
    return np.argsort(shares.sum(0), kind="stable")


def _arrange(matrices: Sequence[np.ndarray], parts: int) -> tuple[np.ndarray, np.ndarray]:
    flat, sizes = [np.empty(0, np.int16)], [np.empty(0, np.int64)]
    for matrix in matrices:
        head = _head_rows(matrix.shape[0], parts)
        flat.append(matrix[:head].reshape(-1))
        if head < matrix.shape[0]:
            flat.append(matrix[head:][:, _order(matrix[:head])].reshape(-1))
        sizes.append(_segment_sizes(matrix.shape, parts))
    return np.concatenate(flat), np.concatenate(sizes)


def _restore(flat: np.ndarray, shapes: Sequence[tuple[int, int]], parts: int) -> list[np.ndarray]:
    matrices, at = [], 0
    for rows, columns in shapes:
        matrix = flat[at : at + rows * columns].reshape(rows, columns)
        at += rows * columns
        head = _head_rows(rows, parts)
        if head < rows:
            position = np.empty(columns, np.int64)
            position[_order(matrix[:head])] = np.arange(columns)
            matrix = np.concatenate([matrix[:head], matrix[head:][:, position]])
        matrices.append(matrix)
    return matrices


def _per_byte(largest: int, count: int) -> int:
    """Return how many symbols in -largest..largest are packed into a byte; 0: a symbol takes two bytes."""
    if largest > 127:
        return 0
    if largest > 3 and count < PLAIN_BELOW:
        return 1
    base, count_per_byte = 2 * largest + 1, 1
    while base ** (count_per_byte + 1) <= 256:
        count_per_byte += 1
    return count_per_byte


def _pack(values: np.ndarray, largest: int) -> np.ndarray:
    if largest == 0:
        return np.empty(0, np.uint8)
    shifted = values + np.int16(largest) if largest <= 127 else values.astype(np.int32) + largest
    per_byte = _per_byte(largest, values.size)
    if per_byte == 0:
        return np.concatenate([(shifted & 255).astype(np.uint8), (shifted >> 8).astype(np.uint8)])
    padded = np.full(-(-values.size // per_byte) * per_byte, largest, np.uint8)
    padded[: values.size] = shifted
    digits = padded.reshape(-1, per_byte)
    packed = digits[:, 0].copy()
    for column in range(1, per_byte):
        packed = packed * np.uint8(2 * largest + 1) + digits[:, column]
    return packed


def _unpack(stream: np.ndarray, at: int, largest: int, count: int) -> tuple[np.ndarray, int]:
    """Return the next `count` symbols (int16) and the position of the rest of the stream."""
    if largest > LARGEST:
        raise WireError(f"a largest symbol of {largest}, above {LARGEST}")
    if largest == 0:
        return np.zeros(count, np.int16), at
    per_byte = _per_byte(largest, count)
    size = 2 * count if per_byte == 0 else -(-count // per_byte)
    if size > stream.size - at:
        raise WireError("symbols end early")
    packed = stream[at : at + size]
    if per_byte == 0:
        values = packed[:count].astype(np.int32) + (packed[count:].astype(np.int32) << 8) - largest
        if count and np.abs(values).max() > largest:
            raise WireError("a symbol is out of its range")
        return values.astype(np.int16), at + size
    base = 2 * largest + 1
    if size and int(packed.max()) >= base**per_byte:
        raise WireError("a symbol is out of its range")
    digits = np.arange(256)[:, None] // base ** np.arange(per_byte - 1, -1, -1) % base - largest
    return digits.astype(np.int16)[packed].reshape(-1)[:count], at + size


def _deflate(blocks: Sequence[np.ndarray]) -> bytes:
    coder = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
    coded = []
    for block in blocks:
        coded += [coder.compress(block.data), coder.flush(zlib.Z_BLOCK)]
    return b"".join([*coded, coder.flush()])


def _inflate(data: np.ndarray, limit: int) -> np.ndarray:
    coder = zlib.decompressobj(-15)
    try:
        stream = coder.decompress(data.data, limit)
    except zlib.error as error:
        raise WireError(f"symbols cannot be inflated: {error}") from None
    if not coder.eof or coder.unused_data:
        raise WireError("the symbols and their bytes have different ends")
    return np.frombuffer(stream, np.uint8)
