"""Key agreement: both sides come to the same keys, each client to its own, and what an active attacker can do."""

from __future__ import annotations

import pytest

from fedkd_mpi.privacy import keys
from fedkd_mpi.privacy.keys import AGREEMENT_BYTES, PUBLIC_BYTES, WRAPPED_BYTES, KeyPair

pytest.importorskip("cryptography")


def test_server_and_clients_come_to_the_same_keys_of_their_own():
    pairs = [KeyPair() for _ in range(3)]
    public, uplinks, broadcast, wrapped = keys.for_clients([pair.public for pair in pairs])
    found = [keys.for_server(client, pair, public, wrapped[client]) for client, pair in enumerate(pairs)]
    assert [uplink for uplink, _ in found] == uplinks
    assert all(key == broadcast for _, key in found)
    assert len({*uplinks, broadcast}) == 4
    assert {len(key) for key in (*uplinks, broadcast)} == {32}
    assert {len(pair.public) for pair in pairs} == {len(public)} == {PUBLIC_BYTES}
    assert {len(key) for key in wrapped} == {WRAPPED_BYTES}
    assert AGREEMENT_BYTES == 32 + 32 + 40


def test_keys_are_new_each_time():
    made = [keys.for_clients([KeyPair().public]) for _ in range(2)]
    for one, other in zip(*made, strict=True):
        assert one != other


def test_the_secret_is_that_of_x25519_and_hkdf_as_their_rfcs_have_them():
    """RFC 7748, section 6.1; HKDF-SHA256 (RFC 5869) written out with hmac."""
    import hashlib
    import hmac

    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    pair = KeyPair()
    bob = "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"
    pair._private = X25519PrivateKey.from_private_bytes(bytes.fromhex(bob))
    pair.public = pair._private.public_key().public_bytes_raw()
    assert pair.public.hex() == "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
    theirs = bytes.fromhex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
    secret = bytes.fromhex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")
    key = hmac.digest(bytes(32), secret, hashlib.sha256)
    info = b"fedkd_mpi keys 1" + (5).to_bytes(4, "little") + pair.public + theirs
    first = hmac.digest(key, info + b"\x01", hashlib.sha256)
    second = hmac.digest(key, first + info + b"\x02", hashlib.sha256)
    assert pair.shared(5, theirs, by_client=True) == (first, second)


def test_a_broadcast_key_that_was_wrapped_for_another_client_is_refused():
    pairs = [KeyPair() for _ in range(2)]
    public, _, _, wrapped = keys.for_clients([pair.public for pair in pairs])
    with pytest.raises(ValueError, match="not wrapped for client 0"):
        keys.for_server(0, pairs[0], public, wrapped[1])


def test_who_replaces_public_keys_on_their_way_reads_everything():
    """What docs/privacy.md says is not protected: nothing proves whose public key it is."""
    client, attacker = KeyPair(), KeyPair()
    public, uplinks, broadcast, wrapped = keys.for_clients([attacker.public])
    uplink, read = keys.for_server(0, attacker, public, wrapped[0])
    assert (uplink, read) == (uplinks[0], broadcast)  # towards the server it is the client
    forged, towards, _, again = keys.for_clients([client.public])
    assert keys.for_server(0, client, forged, again[0])[0] == towards[0]  # and towards the client it is the server
