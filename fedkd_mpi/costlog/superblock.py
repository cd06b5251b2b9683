"""The superblock, the first 48 bytes of an HDF5 file; a flag in it marks a file that is open for writing.

HDF5 File Format Specification 4.0, II.A, version 3: signature, version, two sizes, flags, the addresses of the base, an
extension, the end of the file and the root group, and a checksum.
"""

from __future__ import annotations

import struct

_LAYOUT = struct.Struct("<8s3BB4Q")
_MASK = 0xFFFFFFFF


def is_open(image: bytes) -> bool:
    """Whether a file image starts with a valid superblock whose writer has not closed the file."""
    size = _LAYOUT.size
    if len(image) < size + 4:
        return False
    _, version, _, _, flags, *_ = _LAYOUT.unpack_from(image)
    return version == 3 and flags != 0 and image[size : size + 4] == _checksum(image[:size])


def close(image: bytes) -> bytes:
    """Return the image as if its writer had closed the file."""
    signature, version, offsets, lengths, _, base, extension, _, root = _LAYOUT.unpack_from(image)
    head = _LAYOUT.pack(signature, version, offsets, lengths, 0, base, extension, len(image), root)
    return head + _checksum(head) + image[len(head) + 4 :]


def _checksum(head: bytes) -> bytes:
    """Return the hash lookup3 of Bob Jenkins (2006, public domain), which HDF5 uses as the checksum of metadata."""
    words = struct.unpack(f"<{len(head) // 4}I", head)
    a = b = c = 0xDEADBEEF + len(head)
    while len(words) > 3:
        a, b, c, words = _add(a, words[0]), _add(b, words[1]), _add(c, words[2]), words[3:]
        for by in (4, 6, 8, 16, 19, 4):
            a, b, c = b, _add(c, b), _add(a, -c) ^ _rotate(c, by)
    a, b, c = (_add(word, more) for word, more in zip((a, b, c), (*words, 0, 0), strict=False))
    for by in (14, 11, 25, 16, 4, 14, 24):
        a, b, c = b, _add(c ^ b, -_rotate(b, by)), a
    return struct.pack("<I", b)


def _add(word: int, more: int) -> int:
    return (word + more) & _MASK


def _rotate(word: int, by: int) -> int:
    return (word << by | word >> (32 - by)) & _MASK
