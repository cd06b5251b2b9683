"""Keys of the server and of every client, agreed anew at each start of a run: X25519 (RFC 7748), HKDF (RFC 5869).

Each side makes an ephemeral key pair from the system's randomness and sends the other its public key. HKDF-SHA256
derives two keys per client from the shared secret: one encrypts the client's uplink, the other wraps the broadcast key.
The server's message is one for all clients, so it is encrypted once, under a broadcast key that the server chooses.
Each client receives that key wrapped (RFC 3394) under the key that it alone shares with the server. Keys are in memory
alone: they come from no seed, and no checkpoint and no log contains them.

    client -> server   public key (32 bytes)
    server -> client   public key (32 bytes), wrapped broadcast key (40 bytes)
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from typing import Any

from fedkd_mpi.privacy.aes_gcm import KEY_BYTES, library

PUBLIC_BYTES, WRAPPED_BYTES = 32, KEY_BYTES + 8
AGREEMENT_BYTES = 2 * PUBLIC_BYTES + WRAPPED_BYTES  # per client, up and down


class KeyPair:
    """An ephemeral key pair of one party; `public` is what the other one gets."""

    def __init__(self) -> None:
        library()
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

        self._private: Any = X25519PrivateKey.generate()
        self.public: bytes = self._private.public_key().public_bytes_raw()

    def shared(self, client: int, theirs: bytes, *, by_client: bool) -> tuple[bytes, bytes]:
        """Return the keys that a client and the server share: for its uplink, and for wrapping the broadcast key.

        `theirs` is the other side's public key; `by_client` says whether this pair is the client's. Raises ValueError
        on a public key with which there is no secret.
        """
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        secret = self._private.exchange(X25519PublicKey.from_public_bytes(theirs))
        both = (self.public, theirs) if by_client else (theirs, self.public)
        info = struct.pack("<I", client).join((b"fedkd_mpi keys 1", b"".join(both)))
        derived = HKDF(SHA256(), 2 * KEY_BYTES, salt=None, info=info).derive(secret)
        return derived[:KEY_BYTES], derived[KEY_BYTES:]


def for_clients(publics: Sequence[bytes]) -> tuple[bytes, list[bytes], bytes, list[bytes]]:
    """Return what the server makes of the clients' public keys, in client order.

    Its public key and the wrapped broadcast keys are for the clients; the keys of the uplinks and the broadcast key are
    its own.
    """
    pair, broadcast = KeyPair(), os.urandom(KEY_BYTES)
    from cryptography.hazmat.primitives.keywrap import aes_key_wrap

    uplinks, wrapped = [], []
    for client, public in enumerate(publics):
        uplink, wrapping = pair.shared(client, public, by_client=False)
        uplinks.append(uplink)
        wrapped.append(aes_key_wrap(wrapping, broadcast))
    return pair.public, uplinks, broadcast, wrapped


def for_server(client: int, pair: KeyPair, public: bytes, wrapped: bytes) -> tuple[bytes, bytes]:
    """Return the key of a client's uplink and the broadcast key, from the server's public key and what it wrapped.

    Raises ValueError if the broadcast key was not wrapped for this client.
    """
    from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap

    uplink, wrapping = pair.shared(client, public, by_client=True)
    try:
        return uplink, aes_key_unwrap(wrapping, wrapped)
    except InvalidUnwrap:
        raise ValueError(f"the broadcast key was not wrapped for client {client}") from None
