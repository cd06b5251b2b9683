"""The byte layout of a message: a fixed header, then one tagged record per layer; independent of MPI and codecs.

    message header (40 bytes, little endian)
        magic "FKD1", kind u8, protection u8 (0 = none, 1 = AES-256-GCM), 2 bytes zero, round u32, sender u32,
        records u32, samples u64, payload bytes u64, CRC-32 of the payload u32
    payload = one record per layer, in the order of the layout
        encoding u8, rank i32 (-1 = no matrix factors), data bytes u64, data
    protected payload = nonce, that payload encrypted, tag; the header but for its CRC-32 is authenticated with it

Each record contains its encoding; no encoding is inferred from a length or a shape.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

MAGIC = b"FKD1"
HEADER = struct.Struct("<4sBB2xIIIQQI")
HEADER_BYTES = HEADER.size
ASSOCIATED_BYTES = HEADER_BYTES - 4  # the checksum is of the encrypted payload, so it is known only after encryption
RECORD = struct.Struct("<BiQ")
RECORD_BYTES = RECORD.size
SERVER = 0xFFFFFFFF  # sender of a downlink message
PLAIN, AES_GCM = 0, 1  # protections
UPDATE, SKIPPED = 0, 1  # kinds of message; a SKIPPED message has no records, because its update was not finite


class Record(NamedTuple):
    """One encoded layer: encoding, matrix rank (-1 without factors), bytes (uint8), and the kept share of its energy.

    `paper_rank` is the rank K at which the paper would send the layer, even if it is sent raw because that is shorter.
    Energy and paper_rank are not sent.
    """

    encoding: int
    rank: int
    data: np.ndarray
    energy: float = float("nan")
    paper_rank: int = -1


class Header(NamedTuple):
    """The header of a message; `sender` is a client id or SERVER, `samples` the sender's number of training samples."""

    kind: int
    protection: int
    round: int
    sender: int
    records: int
    samples: int
    payload_bytes: int
    checksum: int


class WireError(ValueError):
    """A message is damaged or invalid; the text names the problem."""


def pack(records: Sequence[Record], room: int = 0) -> np.ndarray:
    """Return the payload of the records after `room` uninitialised bytes: contiguous uint8 [room + payload bytes]."""
    packed = np.empty(room + sum(RECORD_BYTES + record.data.size for record in records), np.uint8)
    at = room
    for record in records:
        RECORD.pack_into(packed.data, at, record.encoding, record.rank, record.data.size)
        at += RECORD_BYTES
        packed[at : at + record.data.size] = record.data
        at += record.data.size
    return packed


def pack_header(
    kind: int, round_index: int, sender: int, records: int, samples: int, payload: np.ndarray
) -> np.ndarray:
    """Return the header of a message without protection: uint8 [HEADER_BYTES]."""
    checksum = zlib.crc32(payload.data)
    return packed(Header(kind, PLAIN, round_index, sender, records, samples, payload.size, checksum))


def packed(header: Header) -> np.ndarray:
    """Return the bytes of a header: uint8 [HEADER_BYTES]."""
    return np.frombuffer(HEADER.pack(MAGIC, *header), np.uint8).copy()


def unpack_header(buffer: np.ndarray) -> Header:
    """Return the fields of a header, uint8 [HEADER_BYTES]; raises WireError if it is invalid."""
    if buffer.size != HEADER_BYTES:
        raise WireError(f"a message header has {HEADER_BYTES} bytes, not {buffer.size}")
    magic, *fields = HEADER.unpack(buffer.tobytes())
    header = Header(*fields)
    if magic != MAGIC:
        raise WireError(f"message starts with {magic!r} instead of {MAGIC!r}")
    if header.kind not in (UPDATE, SKIPPED):
        raise WireError(f"unknown kind of message {header.kind}")
    if header.protection not in (PLAIN, AES_GCM):
        raise WireError(f"unknown protection of a message {header.protection}")
    return header


def require_intact(header: Header, payload: np.ndarray, protection: int) -> None:
    """Raise WireError if the length or the checksum of a payload is wrong, or if it is not protected as it must be."""
    if header.protection != protection:
        raise WireError(f"message has protection {header.protection}, not {protection}")
    if payload.size != header.payload_bytes:
        raise WireError(f"header announces {header.payload_bytes} bytes of payload, but {payload.size} arrived")
    if zlib.crc32(payload.data) != header.checksum:
        raise WireError("checksum of the payload does not match")


def unpack(header: Header, payload: np.ndarray, layers: int) -> list[Record]:
    """Return the records of a payload, as views of it.

    Raises WireError if a length, the number of records (`layers`) or the checksum is invalid. These are checked before
    any record is decoded.
    """
    require_intact(header, payload, PLAIN)
    if header.records != layers:
        raise WireError(f"message has {header.records} records, but the student has {layers} layers")
    records, end, view, length = [], 0, payload.data, payload.size
    for index in range(layers):
        at = end + RECORD_BYTES
        if at > length:
            raise WireError(f"payload ends within the header of record {index}")
        encoding, rank, size = RECORD.unpack_from(view, end)
        end = at + size
        if end > length:
            raise WireError(f"record {index} announces {size} bytes, but {length - at} are left")
        records.append(Record(encoding, rank, payload[at:end]))
    if end != length:
        raise WireError(f"{length - end} bytes follow the last record")
    return records


def checked_exponent(exponent: int) -> int:
    """Return an exponent that came over the wire; raises WireError if no float32 has it."""
    if abs(exponent) > 160:
        raise WireError(f"impossible exponent {exponent}")
    return exponent
