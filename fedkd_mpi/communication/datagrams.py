"""Datagrams between the processes of a run: sockets that its nodes alone reach; what strangers send is ignored.

Whoever shares a node or a network may send to any socket. So nothing that arrives is believed, or even parsed, before
its authentication code is that of the run's key, which travels by MPI alone.
"""

from __future__ import annotations

import hashlib
import hmac
import socket
from collections.abc import Sequence
from contextlib import suppress

KEY_BYTES, CODE_BYTES = 32, 16
LARGEST = 1024  # bytes of a datagram
LOOPBACK = "127.0.0.1"


def open_socket(*, one_node: bool) -> tuple[socket.socket, str]:
    """Return a bound UDP socket and the address by which others reach it, "" for this host's name as they resolve it.

    Where all processes are on one node it is bound to loopback; else to the address of this host's name, or to all
    where that name has none of the network (as in /etc/hosts of Debian).
    """
    own = LOOPBACK if one_node else _address(socket.gethostname()) or ""
    if not one_node and own.startswith("127."):
        own = ""
    opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        opened.bind((own, 0))
    except OSError:  # a name that belongs to another machine
        own = ""
        opened.bind((own, 0))
    return opened, own


def reachable(told: Sequence[str], hosts: Sequence[str], own: str) -> list[str | None]:
    """Return the address of each process as this host, whose name is `own`, reaches it; None where it cannot.

    `told` is what open_socket() gave there. A host's name need not resolve on the host itself.
    """
    found = {host: LOOPBACK if host == own else _address(host) for host in set(hosts)}
    return [address or found[host] for address, host in zip(told, hosts, strict=True)]


def sign(key: bytes, body: bytes) -> bytes:
    """Return a datagram with its authentication code (HMAC with BLAKE2b)."""
    return _code(key, body) + body


def verified(key: bytes, datagram: bytes) -> bytes | None:
    """Return what a datagram says, None where it is not of the holder of the key, or too long."""
    code, body = datagram[:CODE_BYTES], datagram[CODE_BYTES:]
    if len(datagram) > LARGEST or not hmac.compare_digest(code, _code(key, body)):
        return None
    return body


def _code(key: bytes, body: bytes) -> bytes:
    return hmac.new(key, body, hashlib.blake2b).digest()[:CODE_BYTES]


def _address(host: str) -> str | None:
    with suppress(OSError, UnicodeError):
        return socket.gethostbyname(host)
    return None
