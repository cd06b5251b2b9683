"""Authenticated encryption of a payload: AES-256-GCM (NIST SP 800-38D).

    sealed payload = nonce (12 bytes), ciphertext (as long as the payload), tag (16 bytes)
    nonce = sender u32, round u64, little endian

A nonce must never come twice under one key. Every start of a run agrees on new keys (keys.py), and under one key each
sender sends one message per round. So sender and round make the nonce.
"""

from __future__ import annotations

import struct
from types import ModuleType
from typing import Any

import numpy as np

from fedkd_mpi.errors import UserError

NONCE = struct.Struct("<IQ")
NONCE_BYTES, TAG_BYTES, KEY_BYTES = NONCE.size, 16, 32
OVERHEAD = NONCE_BYTES + TAG_BYTES  # bytes that sealing adds to a payload
BLOCK = 16  # bytes; the library wants so much room behind what it writes, where the tag comes


class NotAuthentic(ValueError):
    """A sealed payload or its associated data are not what was sealed for this sender and round."""


def library() -> ModuleType:
    """Return the primitives of the package cryptography; raises UserError if it is not installed."""
    try:
        from cryptography.hazmat import primitives
        from cryptography.hazmat.primitives import ciphers  # noqa: F401  it makes `primitives.ciphers` known
    except ImportError as error:
        raise UserError(
            f"privacy.encryption=aes-gcm needs the package cryptography ({error}): pip install 'fedkd-mpi[privacy]',"
            " or set privacy.encryption=none"
        ) from error
    return primitives


def nonce(sender: int, round_index: int) -> bytes:
    """Return the nonce of the message that a client, or the server, sends in a round."""
    return NONCE.pack(sender, round_index)


def seal(key: bytes, number: bytes, associated: bytes, payload: np.ndarray, into: np.ndarray) -> None:
    """Write the sealed payload to `into`, uint8 [payload bytes + OVERHEAD]; `associated` is authenticated with it."""
    context: Any = _cipher(key, number).encryptor()
    context.authenticate_additional_data(associated)
    into[:NONCE_BYTES] = np.frombuffer(number, np.uint8)
    context.update_into(payload.data, into[NONCE_BYTES:].data)
    context.finalize()
    into[NONCE_BYTES + payload.size :] = np.frombuffer(context.tag, np.uint8)


def unseal(key: bytes, number: bytes, associated: bytes, sealed: np.ndarray, into: np.ndarray) -> None:
    """Write the payload to `into`, uint8 [sealed bytes - NONCE_BYTES], whose last TAG_BYTES are then meaningless.

    Raises NotAuthentic; what `into` holds then must not be used.
    """
    from cryptography.exceptions import InvalidTag

    if sealed.size < OVERHEAD:
        raise NotAuthentic(f"{sealed.size} bytes are no encrypted payload, which has at least {OVERHEAD}")
    if sealed[:NONCE_BYTES].tobytes() != number:
        raise NotAuthentic("its nonce belongs to another sender or round")
    context: Any = _cipher(key, number).decryptor()
    context.authenticate_additional_data(associated)
    context.update_into(sealed[NONCE_BYTES:-TAG_BYTES].data, into.data)
    try:
        context.finalize_with_tag(sealed[-TAG_BYTES:].tobytes())
    except InvalidTag:
        raise NotAuthentic("header or payload are not those that its sender has encrypted") from None


def _cipher(key: bytes, number: bytes) -> Any:
    ciphers = library().ciphers
    return ciphers.Cipher(ciphers.algorithms.AES(key), ciphers.modes.GCM(number))
