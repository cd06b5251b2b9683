"""Naps end with a ring, and nothing but time depends on rings."""

from __future__ import annotations

import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedkd_mpi import doorbell
from fedkd_mpi.datagrams import reachable, sign, verified
from fedkd_mpi.doorbell import STRANGERS, Doorbell

FOREVER = 3600.0
KEY = bytes(range(32))


@pytest.fixture
def bells():
    both = [Doorbell(root=True), Doorbell(root=False)]
    for bell in both:
        bell.connect(["127.0.0.1"] * 2, [each.port for each in both], KEY)
    yield both
    for bell in both:
        bell.close()


def test_a_ring_ends_a_nap_at_once(bells: list[Doorbell], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doorbell, "SHORTEST_NAP", FOREVER)
    come, asleep, awake = threading.Event(), threading.Event(), threading.Event()
    monkeypatch.setattr(bells[1], "_longest", FOREVER)

    def wait():
        bells[1].sleep_until(come.is_set, asleep.set)
        awake.set()

    threading.Thread(target=wait, daemon=True).start()
    assert asleep.wait(60)
    come.set()
    bells[0].ring(0, 1)
    assert awake.wait(60)


def test_after_a_ring_that_came_too_early_the_looks_are_close_together(
    bells: list[Doorbell], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(doorbell, "SHORTEST_NAP", FOREVER)
    monkeypatch.setattr(bells[1], "_longest", FOREVER)
    bells[0].ring(1)
    looks = iter(range(6))  # the message comes some milliseconds after its ring
    bells[1].sleep_until(lambda: next(looks) == 5, lambda: None)


def test_whoever_heard_a_ring_looks_less_often_the_next_time(bells: list[Doorbell], monkeypatch: pytest.MonkeyPatch):
    now, naps = [0.0], []
    monkeypatch.setattr(doorbell.time, "perf_counter", lambda: now[0])

    def wait(ring_at: int, near: bool = False) -> int:
        """Wait a second by a clock that only naps move, with a ring in the last nap if any; return the looks."""
        naps.clear()

        def nap(seconds: float) -> bool:
            naps.append(seconds)
            now[0] += seconds
            return len(naps) == ring_at

        monkeypatch.setattr(bells[1], "_nap", nap)
        begun = now[0]
        bells[1].sleep_until(lambda: now[0] - begun > 1.0, lambda: None, near=near)
        return len(naps)

    on_one_node = [wait(ring_at=0), wait(ring_at=1), wait(ring_at=0)]
    monkeypatch.setattr(bells[1], "_one_node", False)
    wary, _, trusting = wait(ring_at=0), wait(ring_at=1), wait(ring_at=0)
    assert trusting < wary / 2
    assert wait(ring_at=0) == wait(ring_at=0, near=True) == wary
    _, near = wait(ring_at=1), wait(ring_at=0, near=True)
    assert near < trusting / 2
    assert on_one_node == [wary, wary, near]


def test_without_rings_naps_end_by_themselves(bells: list[Doorbell]):
    silent = Doorbell(root=False)
    silent.ring(0)
    looks = iter(range(4))
    assert silent.sleep_until(lambda: next(looks) == 3, lambda: None) > 0
    silent.close()


def test_a_host_that_nobody_knows_is_left_to_its_naps(bells: list[Doorbell], monkeypatch: pytest.MonkeyPatch):
    def unknown(host: str) -> str:
        raise socket.gaierror(f"{host} is unknown")

    monkeypatch.setattr(socket, "gethostbyname", unknown)
    assert reachable(["", ""], ["nowhere", "elsewhere"], "elsewhere") == [None, "127.0.0.1"]
    bells[0].connect([None, "127.0.0.1"], [1, 2], KEY)
    bells[0].ring(0, 1)


def test_any_number_of_rings_is_one(bells: list[Doorbell]):
    bells[0].ring(*[1] * 50)
    looks = []
    bells[1].sleep_until(lambda: len(looks) > 1, lambda: looks.append(bells[1]._nap(1e-4)))
    assert looks == [True, False]


def test_a_host_reaches_itself_without_its_name():
    hosts = ["node1", "localhost", "node1"]
    assert reachable(["", "", "10.0.0.7"], hosts, "node1") == ["127.0.0.1", "127.0.0.1", "10.0.0.7"]


def test_what_strangers_send_wakes_nobody_and_a_ring_is_heard_behind_it(bells: list[Doorbell]):
    stranger = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for number in range(STRANGERS // 2):
        stranger.sendto([b"", b"ring", bytes(2000), sign(bytes(32), b"ring")][number % 4], ("127.0.0.1", bells[1].port))
    bells[0].ring(1)
    assert bells[1]._nap(FOREVER)
    for _ in range(3 * STRANGERS):
        stranger.sendto(b"x", ("127.0.0.1", bells[1].port))
    assert not bells[1]._nap(0.05)
    stranger.close()


def test_all_on_one_node_listen_on_loopback_alone(bells: list[Doorbell]):
    assert {bell._socket.getsockname()[0] for bell in bells} == {"127.0.0.1"}


@given(st.binary(max_size=64), st.integers(0, 200), st.integers(1, 255))
def test_a_datagram_is_believed_only_as_it_was_signed(body: bytes, place: int, flip: int):
    datagram = bytearray(sign(KEY, body))
    assert verified(KEY, bytes(datagram)) == body
    assert verified(bytes(32), bytes(datagram)) is None
    datagram[place % len(datagram)] ^= flip
    assert verified(KEY, bytes(datagram)) is None
