"""Encrypted messages of a run: the key agreement at its start, and what it does to each message."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from fedkd_mpi.codecs import wire
from fedkd_mpi.codecs.message import Message
from fedkd_mpi.codecs.wire import AES_GCM, ASSOCIATED_BYTES, HEADER_BYTES, PLAIN, SERVER, WireError
from fedkd_mpi.common.stopwatch import Stopwatch
from fedkd_mpi.communication.exchange import arrival
from fedkd_mpi.communication.world import World
from fedkd_mpi.errors import RunFault
from fedkd_mpi.privacy import aes_gcm, keys
from fedkd_mpi.privacy.aes_gcm import NONCE_BYTES, OVERHEAD, TAG_BYTES, NotAuthentic
from fedkd_mpi.privacy.keys import PUBLIC_BYTES, WRAPPED_BYTES, KeyPair


class Encryption:
    """The keys of one process: of the clients that it hosts, of the broadcast and, on rank 0, of every client."""

    def __init__(self, own: Mapping[int, bytes], broadcast: bytes, server: Sequence[bytes] = ()):
        self._own, self._broadcast, self._server = own, broadcast, server
        self._last: dict[int, int] = {}  # round of the last message of each sender

    def seal(self, message: Message) -> Message:
        """Return a message encrypted for its receiver; each sender seals one message per round, in their order."""
        header = message.parsed
        if header.round <= self._last.get(header.sender, -1):
            raise RuntimeError(f"sender {header.sender} has used the nonce of round {header.round} under this key")
        self._last[header.sender] = header.round
        key = self._broadcast if header.sender == SERVER else self._own[header.sender]
        size = header.payload_bytes + OVERHEAD
        header = header._replace(protection=AES_GCM, payload_bytes=size)
        whole = np.empty(HEADER_BYTES + size, np.uint8)
        associated = wire.packed(header)[:ASSOCIATED_BYTES].tobytes()
        number = aes_gcm.nonce(header.sender, header.round)
        aes_gcm.seal(key, number, associated, message.payload, whole[HEADER_BYTES:])
        return _with_header(whole, header)

    def unseal(self, message: Message, sender: int, round_index: int) -> Message:
        """Return the message that a client, or SERVER, has encrypted for a round.

        Raises RunFault naming client and round if it is damaged, or another message than that one.
        """
        client = None if sender == SERVER else sender
        key = self._broadcast if client is None else self._server[sender]
        header, payload = message.parsed, message.payload
        whole = np.empty(HEADER_BYTES + payload.size - NONCE_BYTES, np.uint8)
        associated = message.header[:ASSOCIATED_BYTES].tobytes()
        try:
            wire.require_intact(header, payload, AES_GCM)
            number = aes_gcm.nonce(sender, round_index)
            aes_gcm.unseal(key, number, associated, payload, whole[HEADER_BYTES:])
        except (WireError, NotAuthentic) as error:
            raise RunFault(f"damaged message: {error}", round=round_index, client=client) from None
        plain = header._replace(protection=PLAIN, payload_bytes=payload.size - OVERHEAD)
        return _with_header(whole[:-TAG_BYTES], plain, OVERHEAD)

    def unseal_each(
        self, arriving: Iterator[Message], cohort: Sequence[int], round_index: int, watch: Stopwatch
    ) -> Iterator[Message]:
        """Yield the messages of a cohort, in its order, as its clients have encrypted them; raises RunFault."""
        clients = iter(cohort)
        for message in arriving:
            with watch("encrypt"):
                unsealed = self.unseal(message, next(clients), round_index)
            yield unsealed


def _with_header(whole: np.ndarray, header: wire.Header, encryption_bytes: int = 0) -> Message:
    """Write a header with the checksum of the payload that follows it in `whole`, and return the message."""
    checksum = zlib.crc32(whole[HEADER_BYTES:].data)
    whole[:HEADER_BYTES] = wire.packed(header._replace(checksum=checksum))
    return Message(whole, encryption_bytes)


def agree(world: World, rank_of_client: np.ndarray) -> Encryption:
    """Agree on new keys between the server and every client of a run, and return those of this process. Collective.

    Processes that host no client receive the broadcast as well, because they score the global student for the server:
    each takes part with a key pair of its own.
    """
    idle = set(range(1, world.world_size)) - set(rank_of_client.tolist())
    rank_of_party = np.concatenate([rank_of_client, np.array(sorted(idle), np.int64)])
    pairs = {party: KeyPair() for party in np.flatnonzero(rank_of_party == world.mpi_rank).tolist()}
    own = np.frombuffer(b"".join(pair.public for pair in pairs.values()), np.uint8)
    counts = PUBLIC_BYTES * np.bincount(rank_of_party, minlength=world.world_size)
    told = world.gather(own, counts.tolist(), sleeping=True)
    answer = np.empty(PUBLIC_BYTES + WRAPPED_BYTES * len(rank_of_party), np.uint8)
    uplinks: list[bytes] = []
    broadcast = b""
    if told is not None:
        publics = told.reshape(-1, PUBLIC_BYTES)[arrival(rank_of_party)]
        own_public, uplinks, broadcast, for_each = keys.for_clients([row.tobytes() for row in publics])
        answer[:] = np.frombuffer(own_public + b"".join(for_each), np.uint8)
    world.broadcast_small()  # the others sleep until the server has its keys
    world.broadcast(answer)
    public, wrapped = answer[:PUBLIC_BYTES].tobytes(), answer[PUBLIC_BYTES:].reshape(-1, WRAPPED_BYTES)
    shared = {}
    for party, pair in pairs.items():
        shared[party], broadcast = keys.for_server(party, pair, public, wrapped[party].tobytes())
    return Encryption(shared, broadcast, uplinks)
