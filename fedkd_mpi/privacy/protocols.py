"""What secure aggregation and homomorphic encryption would send, as closed formulae of their papers.

SecAgg   Bonawitz et al., Practical secure aggregation for privacy-preserving machine learning, CCS 2017
SecAgg+  Bell et al., Secure single-server aggregation with (poly)logarithmic overhead, CCS 2020
CKKS     Cheon et al., Homomorphic encryption for arithmetic of approximate numbers, Asiacrypt 2017, in its RNS form
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from fedkd_mpi.errors import UserError, shown

RESIDUE_BYTES = 8  # of a coefficient modulo one prime, as SEAL and TenSEAL store it


@dataclass(frozen=True)
class Parameters:
    """What the formulae depend on beside numbers and clients; bits per item unless said otherwise.

    100 neighbours suffice for 100,000 clients of which 10 % are corrupt and 10 % drop out, with the probabilities
    2^-40 and 2^-30 of Bell et al. and a threshold of a little more than half.
    """

    key_bits: int = 256  # a public key
    share_bits: int = 256  # a share of a secret
    value_bits: int = 22  # a client's number in fixed point; Flower's quantization_range is 2^22
    modulus_bits: int = 32  # a masked number, at least; more where a sum of all clients' numbers would not fit
    neighbours: int = 100  # of SecAgg+: the clients with whom a client shares masks
    degree: int = 8192  # of CKKS: coefficients of a polynomial; a ciphertext holds half as many numbers
    coefficient_bits: tuple[int, ...] = (60, 40, 40)  # of CKKS: the primes; the last one is for keys alone


LIMITS = {
    "key_bits": (1, 10**5),
    "share_bits": (1, 10**5),
    "value_bits": (1, 64),
    "modulus_bits": (1, 128),
    "neighbours": (2, 10**7),
    "degree": (2, 2**20),
}


class Legs(NamedTuple):
    """Bytes of one client in one round: up and down."""

    up: int
    down: int


def masks(neighbours: int, given: Parameters) -> Legs:
    """Return the bytes of keys and shares of a client that shares masks with so many others.

    Up: two public keys; two encrypted shares for each neighbour; at the end one share of each neighbour and its own.
    Down: two public keys and two encrypted shares of each neighbour. With n - 1 neighbours both legs together are
    2n keys and 5n - 4 shares (Bonawitz et al., section 7). No client drops out; lists of names are not counted.
    """
    up = 2 * given.key_bits + (3 * neighbours + 1) * given.share_bits
    down = 2 * neighbours * (given.key_bits + given.share_bits)
    return Legs(math.ceil(up / 8), math.ceil(down / 8))


def masked_bytes(numbers: int, clients: int, given: Parameters) -> int:
    """Return the bytes of a masked vector: numbers modulo a power of two that the sum of all clients' numbers fits."""
    bits = max(given.modulus_bits, math.ceil(math.log2(clients * (2**given.value_bits - 1) + 1)))
    return math.ceil(numbers * bits / 8)


def secagg(numbers: int, clients: int, given: Parameters) -> Legs:
    """Return what SecAgg sends of and to a client of a cohort, beside the server's message, which stays as it is."""
    keys = masks(clients - 1, given)
    return Legs(keys.up + masked_bytes(numbers, clients, given), keys.down)


def secagg_plus(numbers: int, clients: int, given: Parameters) -> Legs:
    """Return the same of SecAgg+, in which a client shares masks with some of the others."""
    keys = masks(min(given.neighbours, clients - 1), given)
    return Legs(keys.up + masked_bytes(numbers, clients, given), keys.down)


def ciphertext_bytes(numbers: int, given: Parameters) -> int:
    """Return the bytes of the fresh CKKS ciphertexts of a vector: two polynomials each, modulo all primes but one."""
    size = 2 * given.degree * (len(given.coefficient_bits) - 1) * RESIDUE_BYTES
    return -(-numbers // (given.degree // 2)) * size


def ckks(numbers: int, clients: int, given: Parameters) -> Legs:
    """Return what CKKS sends: the update up and the sum down, both encrypted. Keys are given to clients beforehand."""
    return Legs(*2 * [ciphertext_bytes(numbers, given)])


PROTOCOLS: dict[str, tuple[str, Callable[[int, int, Parameters], Legs]]] = {
    "secagg": ("SecAgg", secagg),
    "secaggplus": ("SecAgg+", secagg_plus),
    "ckks": ("CKKS", ckks),
}


def parse(text: str, option: str) -> Parameters:
    """Return the parameters with those of a text NAME=VALUE,... in their place; raises UserError."""
    given: dict[str, int | tuple[int, ...]] = {}
    names = [*LIMITS, "coefficient_bits"]
    for word in text.split(","):
        name, _, value = word.strip().partition("=")
        parts = value.split("+")
        if name not in names or not all(part.isascii() and part.isdigit() and len(part) < 9 for part in parts):
            raise UserError(f"{option} {shown(word)}: give NAME=NUMBER with a name of {', '.join(names)}")
        numbers = tuple(int(part) for part in parts)
        if name == "coefficient_bits":
            if len(numbers) < 2 or not all(1 <= bits <= 60 for bits in numbers):
                raise UserError(f"{option} {shown(word)}: give two primes or more of at most 60 bits, as 60+40+40")
            given[name] = numbers
            continue
        least, most = LIMITS[name]
        if len(numbers) > 1 or not least <= numbers[0] <= most or (name == "degree" and numbers[0].bit_count() > 1):
            kind = "a power of two" if name == "degree" else "a number"
            raise UserError(f"{option} {shown(word)}: {name} is {kind} from {least} to {most}")
        given[name] = numbers[0]
    return replace(Parameters(), **given)  # type: ignore[arg-type]


def described(given: Parameters) -> str:
    """Return the parameters as a text."""
    primes = "+".join(map(str, given.coefficient_bits))
    return (
        f"SecAgg, SecAgg+: public keys of {given.key_bits} bits, shares of {given.share_bits}, numbers of"
        f" {given.value_bits} bits in words of at least {given.modulus_bits}; SecAgg+: at most {given.neighbours}"
        f" neighbours; CKKS: degree {given.degree}, coefficient bits {primes}:"
        f" {ciphertext_bytes(1, given):,} bytes per {given.degree // 2:,} numbers"
    )
