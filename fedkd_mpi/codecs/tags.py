"""The encoding number of every record, in one table that docs/codecs.md repeats. A number is never given out twice."""

from __future__ import annotations

from typing import NamedTuple


class Tag(NamedTuple):
    """What an encoding number stands for: the codecs that send it and the layout of the data, little endian."""

    name: str
    codecs: tuple[str, ...]
    data: str


RAW = 0
LOW_RANK = 1
OWN = 7
HALF = 8
HALF_FACTORS = 9
BYTE_FACTORS = 10
FACTORS = 16
DENSE = 17
POOLED = 18
QUANTIZED = 24
SPARSE = 33  # 32 had places of 2 or 4 bytes
POWER = 40
SKETCH = 48
SUBMATRIX = 56
EDEN = 64
SIGN = 72
TERNARY = 80
DADAQUANT = 88
SZ3 = 96

TAGS = {
    RAW: Tag(
        "raw",
        (
            *("none", "svd", "rdsvd", "float16", "quantize", "topk", "powersgd", "fetchsgd", "submatrix", "eden"),
            *("sign", "ternary", "dadaquant", "sz3"),
        ),
        "float32 of every entry",
    ),
    LOW_RANK: Tag("low rank", ("svd",), "U diag(s) [P, K], V [K, Q], float32"),
    OWN: Tag("own", ("package.module:Class",), "what a codec of one's own puts there"),
    HALF: Tag("half", ("float16", "rdsvd"), "exponent i16, float16 of every entry"),
    HALF_FACTORS: Tag("half factors", ("rdsvd",), "exponent i16, float16 of U diag(s) [P, K] and V [K, Q]"),
    BYTE_FACTORS: Tag(
        "byte factors", ("rdsvd",), "exponent i16, a float32 per direction, int8 of U diag(s) / max and of V / max"
    ),
    FACTORS: Tag(
        "factors",
        ("rdsvd",),
        "unfolding u8, exponent i16, step f32, mask of rows (if unfolding >= 128), symbols of both factors;"
        " nothing at all for a tensor of zeros",
    ),
    DENSE: Tag("dense", ("rdsvd",), "the same head, symbols of the matrix"),
    POOLED: Tag(
        "pooled",
        ("rdsvd",),
        "exponent i16, step f32, symbols of all vectors, in the record of the first; the others' are empty",
    ),
    QUANTIZED: Tag("quantized", ("quantize",), "scale f32, integers of 16, 8 or 4 bits, of 4 two per byte"),
    SPARSE: Tag(
        "sparse",
        ("topk", "fetchsgd"),
        "number of entries k (7 bits per byte, lowest first, the eighth set in all but the last), 0 to 2 levels f32,"
        " Rice-coded gaps between the places, values (f32, or a sign and a level in `bits`); nothing for k = 0",
    ),
    POWER: Tag("power", ("powersgd",), "P [P, r] orthonormal, Q [Q, r], float32"),
    SKETCH: Tag(
        "sketch", ("fetchsgd",), "float32 [hash functions, buckets] in the first record; the others' are empty"
    ),
    SUBMATRIX: Tag(
        "submatrix",
        ("submatrix",),
        "a bit per row and a bit per column, each padded to bytes, then float32 of the entries of those that are set",
    ),
    EDEN: Tag(
        "rotated",
        ("eden",),
        "seed u16, a f32 per block of 16,384 entries, levels of rotated entries in `bits` (of a fraction: one bit more"
        " for the first ones of each block); nothing at all for a tensor of zeros",
    ),
    SIGN: Tag(
        "signs",
        ("sign",),
        "magnitude f32, a bit per entry that is set where it is negative; nothing at all for a tensor of zeros",
    ),
    TERNARY: Tag(
        "ternary",
        ("ternary",),
        "magnitude f32, symbols -1, 0 and 1 of all entries; nothing at all for a tensor of zeros",
    ),
    DADAQUANT: Tag(
        "levels",
        ("dadaquant",),
        "largest magnitude f32, levels u16, symbols of all entries; nothing at all for a tensor of zeros",
    ),
    SZ3: Tag(
        "sz3",
        ("sz3",),
        "exponent i16, CRC-32 u32 of the stream, a stream of SZ3 of all entries; nothing at all for a tensor of zeros",
    ),
}
