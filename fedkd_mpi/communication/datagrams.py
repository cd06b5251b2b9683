"""Authenticated UDP datagrams between the processes of a run; datagrams from other senders are ignored.

Any process on the same node or network can send to a UDP socket. A datagram is therefore parsed only after its
authentication code has been verified with the key of the run. The key is sent through MPI only.
"""

from __future__ import annotations

import hashlib
import hmac
import socket
from collections.abc import Sequence
from contextlib import suppress

KEY_BYTES, CODE_BYTES = 32, 16
LARGEST = 1024  # bytes per datagram
LOOPBACK = "127.0.0.1"


def open_socket(*, one_node: bool) -> tuple[socket.socket, str]:
    """Return a bound UDP socket and the address at which other processes reach it.

    The address is "" if the other processes must resolve this host's name themselves. With one_node the socket is
    bound to loopback. Otherwise it is bound to the address of this host's name, or to all interfaces if the name
    resolves to loopback (as Debian's /etc/hosts does).
    """
    own = LOOPBACK if one_node else _address(socket.gethostname()) or ""
    if not one_node and own.startswith("127."):
        own = ""
    opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        opened.bind((own, 0))
    except OSError:  # the name resolves to an address of another machine
        own = ""
        opened.bind((own, 0))
    return opened, own


def reachable(addresses: Sequence[str], hostnames: Sequence[str], own: str) -> list[str | None]:
    """Return the address at which this host reaches each process, None for a process that it cannot reach.

    `addresses` are those that open_socket() returned in each process, `hostnames` are the names of the processes' hosts
    and `own` is the name of this host. A host's name need not resolve on the host itself.
    """
    found = {host: LOOPBACK if host == own else _address(host) for host in set(hostnames)}
    return [address or found[host] for address, host in zip(addresses, hostnames, strict=True)]


def sign(key: bytes, body: bytes) -> bytes:
    """Return a datagram: the authentication code (HMAC with BLAKE2b), then the body."""
    return _code(key, body) + body


def verified(key: bytes, datagram: bytes) -> bytes | None:
    """Return the body of a datagram, or None if its authentication code is invalid or the datagram is too long."""
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
