"""The byte layout: what goes in comes out, and a damaged message is refused before anything of it is used."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd_mpi.codecs import wire
from fedkd_mpi.codecs.wire import Record, WireError
from fedkd_mpi.models.layer import Layer

records = st.lists(
    st.builds(
        lambda encoding, rank, data: Record(encoding, rank, np.frombuffer(data, np.uint8)),
        st.integers(0, 255),
        st.integers(-1, 2**31 - 1),
        st.binary(max_size=40),
    ),
    max_size=6,
)
numbers = st.integers(0, 2**32 - 1)


def message(
    parts: list[Record], round_index: int = 3, sender: int = 5, samples: int = 17
) -> tuple[np.ndarray, np.ndarray]:
    payload = wire.pack(parts)
    return wire.pack_header(wire.UPDATE, round_index, sender, len(parts), samples, payload), payload


def read(header: np.ndarray, payload: np.ndarray, layers: int) -> list[Record]:
    return wire.unpack(wire.unpack_header(header), payload, layers)


@given(parts=records, round_index=numbers, sender=numbers, samples=st.integers(0, 2**64 - 1))
def test_round_trip(parts: list[Record], round_index: int, sender: int, samples: int):
    header, payload = message(parts, round_index, sender, samples)
    assert header.size == wire.HEADER_BYTES
    assert payload.size == sum(wire.RECORD_BYTES + part.data.size for part in parts)
    told = wire.unpack_header(header)
    assert (told.round, told.sender, told.samples, told.payload_bytes) == (round_index, sender, samples, payload.size)
    back = wire.unpack(told, payload, len(parts))
    assert [(part.encoding, part.rank, part.data.tobytes()) for part in back] == [
        (part.encoding, part.rank, part.data.tobytes()) for part in parts
    ]


@settings(max_examples=200)
@given(parts=records, data=st.data())
def test_flipped_bit_in_the_payload_is_refused(parts: list[Record], data: st.DataObject):
    header, payload = message([*parts, Record(0, 0, np.ones(4, np.uint8))])
    payload[data.draw(st.integers(0, payload.size - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(WireError, match="checksum"):
        read(header, payload, len(parts) + 1)


@given(parts=records, data=st.data())
def test_truncated_payload_is_refused(parts: list[Record], data: st.DataObject):
    header, payload = message([*parts, Record(0, 0, np.ones(4, np.uint8))])
    with pytest.raises(WireError, match="bytes of payload"):
        read(header, payload[: data.draw(st.integers(0, payload.size - 1))], len(parts) + 1)


@given(junk=st.binary(max_size=80))
def test_foreign_header_is_refused(junk: bytes):
    with pytest.raises(WireError):
        wire.unpack_header(np.frombuffer(junk, np.uint8))


def test_header_of_another_project_of_the_right_length_is_refused():
    header, _ = message([])
    header[:4] = np.frombuffer(b"GRIB", np.uint8)
    with pytest.raises(WireError, match="GRIB"):
        wire.unpack_header(header)


def test_unknown_kind_of_message_is_refused():
    header, _ = message([])
    header[4] = 77
    with pytest.raises(WireError, match="77"):
        wire.unpack_header(header)


def test_another_number_of_layers_is_refused():
    header, payload = message([Record(0, 0, np.ones(4, np.uint8))])
    with pytest.raises(WireError, match=r"1 records.*2 layers"):
        read(header, payload, 2)


def forged(payload: bytes, count: int) -> tuple[np.ndarray, np.ndarray]:
    body = np.frombuffer(payload, np.uint8).copy()
    return wire.pack_header(wire.UPDATE, 0, 0, count, 0, body), body


def test_record_that_announces_more_than_there_is_is_refused():
    with pytest.raises(WireError, match="announces"):
        read(*forged(wire.RECORD.pack(0, 0, 2**63) + b"1234", 1), 1)


def test_payload_that_ends_inside_a_record_head_is_refused():
    with pytest.raises(WireError, match="header of record 0"):
        read(*forged(b"12345", 1), 1)


def test_bytes_after_the_last_record_are_refused():
    with pytest.raises(WireError, match="follow the last record"):
        read(*forged(wire.RECORD.pack(0, 0, 2) + b"1234", 1), 1)


@pytest.mark.parametrize(
    ("shape", "matrix"), [((8,), (8, 1)), ((), (1, 1)), ((6, 4), (6, 4)), ((16, 3, 5, 5), (16, 75)), ((0, 4), (0, 0))]
)
def test_fault_4_convolutions_unfold_to_output_channels(shape: tuple[int, ...], matrix: tuple[int, int]):
    assert Layer("x", shape, True).matrix_shape == matrix
