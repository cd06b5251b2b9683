"""Closed formulae of secure aggregation and CKKS, against figures of the papers and numbers worked out by hand."""

from __future__ import annotations

from math import comb, log2

import pytest

from fedkd_mpi.errors import UserError
from fedkd_mpi.privacy import protocols
from fedkd_mpi.privacy.protocols import Parameters

BONAWITZ = Parameters(value_bits=16, modulus_bits=1)  # 16-bit inputs, sums in as few bits as they take


@pytest.mark.parametrize(("clients", "numbers", "expansion"), [(2**10, 2**20, 1.73), (2**14, 2**24, 1.98)])
def test_secagg_expands_16_bit_inputs_as_the_abstract_of_bonawitz_et_al_says(
    clients: int, numbers: int, expansion: float
):
    legs = protocols.secagg(numbers, clients, BONAWITZ)
    assert round(sum(legs) / (2 * numbers), 2) == expansion


@pytest.mark.parametrize("clients", [2, 3, 33, 500])
def test_a_client_moves_2n_keys_and_5n_minus_4_shares(clients: int):
    given = Parameters(key_bits=8, share_bits=8)
    apart = [protocols.masks(clients - 1, each) for each in (given, Parameters(key_bits=16, share_bits=8))]
    assert sum(apart[1]) - sum(apart[0]) == 2 * clients  # one byte more per key
    assert sum(apart[0]) == 2 * clients + (5 * clients - 4)


def test_three_clients_by_hand():
    """Up: 2 keys, 2 shares for each of 2 others, 3 shares at the end, 10 words; down: 2 keys and 2 shares of each."""
    given = Parameters()
    assert protocols.secagg(10, 3, given) == (32 * (2 + 4 + 3) + 40, 32 * (4 + 4))
    assert protocols.secagg_plus(10, 3, given) == protocols.secagg(10, 3, given)


def test_secagg_plus_does_not_grow_with_the_cohort_beyond_its_neighbours():
    given = Parameters(neighbours=20)
    few, many = (protocols.secagg_plus(1000, clients, given) for clients in (21, 1000))
    assert few == many == (32 * (2 + 2 * 20 + 21) + 4000, 32 * (2 * 20 + 2 * 20))
    assert sum(protocols.secagg(1000, 1000, given)) > 10 * (sum(many) - 4000)


def test_words_are_wider_where_a_sum_would_not_fit():
    given = Parameters()
    assert protocols.masked_bytes(8, 1024, given) == 32  # 1024 numbers of 22 bits fit 32
    assert protocols.masked_bytes(8, 1026, given) == 33


def test_ckks_takes_262144_bytes_for_4096_numbers():
    given = Parameters()
    assert protocols.ckks(1, 7, given) == protocols.ckks(4096, 7, given) == (262_144, 262_144)
    assert protocols.ckks(4097, 7, given) == (524_288, 524_288)
    assert 262_144 / (4 * 4096) == 16  # times float32
    small = Parameters(degree=4096, coefficient_bits=(40, 20, 40))
    assert protocols.ckks(2048, 7, small) == (131_072, 131_072)


@pytest.mark.parametrize("clients", [1_000, 100_000])
def test_100_neighbours_are_enough_for_what_the_parameters_promise(clients: int):
    """Tails of the hypergeometric distribution, for any client, at 10 % corrupt and 10 % who drop out."""
    others, bad, neighbours, threshold = clients - 1, (clients - 1) // 10, Parameters().neighbours, 54

    def tail(least: int) -> float:
        ways = sum(comb(bad, count) * comb(others - bad, neighbours - count) for count in range(least, neighbours + 1))
        return log2(clients * ways) - log2(comb(others, neighbours))

    assert tail(threshold) < -40  # so many corrupt neighbours would learn a secret
    assert tail(neighbours - threshold + 1) < -30  # so few left could not undo a mask


def test_parameters_are_read_from_text():
    given = protocols.parse("neighbours=50, degree=4096,coefficient_bits=40+20+40", "--protocol")
    assert (given.neighbours, given.degree, given.coefficient_bits, given.key_bits) == (50, 4096, (40, 20, 40), 256)
    assert "at most 50 neighbours; CKKS: degree 4096, coefficient bits 40+20+40" in protocols.described(given)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("neighbors=3", "give NAME=NUMBER with a name of key_bits, "),
        ("neighbours=x", "give NAME=NUMBER"),
        ("neighbours", "give NAME=NUMBER"),
        ("neighbours=1", "neighbours is a number from 2 to 10000000"),
        ("degree=8191", "degree is a power of two from 2 to 1048576"),
        ("coefficient_bits=60", "give two primes or more of at most 60 bits"),
        ("coefficient_bits=60+61", "give two primes or more of at most 60 bits"),
        ("key_bits=1+2", "key_bits is a number"),
    ],
)
def test_other_texts_are_refused(text: str, reason: str):
    with pytest.raises(UserError, match=f"^--protocol .*{reason}"):
        protocols.parse(text, "--protocol")
