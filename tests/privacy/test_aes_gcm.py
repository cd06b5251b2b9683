"""Sealed payloads: the published test vector and the library's own one-shot interface are the truth."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedkd_mpi.errors import UserError
from fedkd_mpi.privacy import aes_gcm
from fedkd_mpi.privacy.aes_gcm import NONCE_BYTES, OVERHEAD, TAG_BYTES, NotAuthentic

aead = pytest.importorskip("cryptography.hazmat.primitives.ciphers.aead")
KEY = bytes(range(32))


def sealed(key: bytes, number: bytes, associated: bytes, payload: bytes) -> np.ndarray:
    into = np.empty(len(payload) + OVERHEAD, np.uint8)
    aes_gcm.seal(key, number, associated, np.frombuffer(payload, np.uint8), into)
    return into


def unsealed(key: bytes, number: bytes, associated: bytes, whole: np.ndarray) -> bytes:
    into = np.empty(max(whole.size - NONCE_BYTES, 0), np.uint8)
    aes_gcm.unseal(key, number, associated, whole, into)
    return into[:-TAG_BYTES].tobytes()


def test_case_16_of_mcgrew_and_viega():
    key = bytes.fromhex("feffe9928665731c6d6a8f9467308308" * 2)
    number = bytes.fromhex("cafebabefacedbaddecaf888")
    associated = bytes.fromhex("feedfacedeadbeef" * 2 + "abaddad2")
    payload = bytes.fromhex(
        "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
        "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39"
    )
    expected = (
        "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa"
        "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662"
        "76fc6ece0f4e1768cddf8853bb2d551b"
    )
    assert sealed(key, number, associated, payload).tobytes() == number + bytes.fromhex(expected)


@given(st.binary(max_size=100), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1), st.binary(max_size=40))
def test_it_is_aes_gcm_as_the_library_has_it_and_comes_back(
    payload: bytes, sender: int, round_index: int, associated: bytes
):
    number = aes_gcm.nonce(sender, round_index)
    whole = sealed(KEY, number, associated, payload)
    assert whole.size == len(payload) + 28
    assert whole.tobytes() == number + aead.AESGCM(KEY).encrypt(number, payload, associated)
    assert unsealed(KEY, number, associated, whole) == payload


@given(st.binary(max_size=40), st.data())
def test_any_flipped_bit_is_refused(payload: bytes, data: st.DataObject):
    number, associated = aes_gcm.nonce(3, 7), b"header"
    whole = sealed(KEY, number, associated, payload)
    whole[data.draw(st.integers(0, whole.size - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(NotAuthentic):
        unsealed(KEY, number, associated, whole)


def test_what_was_sealed_under_another_key_header_or_nonce_or_is_too_short_is_refused():
    number = aes_gcm.nonce(3, 7)
    whole = sealed(KEY, number, b"header", b"payload")
    for key, nonce, associated in (
        (KEY[::-1], number, b"header"),
        (KEY, number, b"Header"),
        (KEY, aes_gcm.nonce(3, 8), b"header"),
        (KEY, aes_gcm.nonce(4, 7), b"header"),
    ):
        with pytest.raises(NotAuthentic):
            unsealed(key, nonce, associated, whole)
    for size in (0, OVERHEAD - 1):
        with pytest.raises(NotAuthentic, match=f"{size} bytes are no encrypted payload"):
            unsealed(KEY, number, b"header", whole[:size])


def test_nonces_of_different_senders_and_rounds_differ():
    assert len({aes_gcm.nonce(sender, index) for sender in (0, 1, 256, 2**32 - 1) for index in range(600)}) == 2400


def test_a_missing_library_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "cryptography"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(UserError, match=r"aes-gcm needs the package cryptography .*fedkd-mpi\[privacy"):
        aes_gcm.library()
