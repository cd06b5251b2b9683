"""A wake-up ends the pause of a process that waits, and nothing but time depends on wake-ups."""

from __future__ import annotations

import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mpirun import PATIENCE

from fedkd_mpi.communication import wakeup
from fedkd_mpi.communication.datagrams import reachable, sign, verified
from fedkd_mpi.communication.wakeup import STRANGERS, WakeupSocket

FOREVER = 3600.0
KEY = bytes(range(32))


@pytest.fixture
def wakeups():
    both = [WakeupSocket(root=True), WakeupSocket(root=False)]
    for waker in both:
        waker.connect(["127.0.0.1"] * 2, [each.port for each in both], KEY)
    yield both
    for waker in both:
        waker.close()


def test_a_wakeup_ends_a_pause_at_once(wakeups: list[WakeupSocket], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(wakeup, "SHORTEST_INTERVAL", FOREVER)
    come, asleep, awake = threading.Event(), threading.Event(), threading.Event()
    monkeypatch.setattr(wakeups[1], "_longest", FOREVER)

    def wait():
        wakeups[1].sleep_until(come.is_set, asleep.set)
        awake.set()

    threading.Thread(target=wait, daemon=True).start()
    assert asleep.wait(PATIENCE)
    come.set()
    wakeups[0].notify(0, 1)
    assert awake.wait(PATIENCE)


def test_after_a_wakeup_that_came_too_early_the_checks_are_close_together(
    wakeups: list[WakeupSocket], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(wakeup, "SHORTEST_INTERVAL", FOREVER)
    monkeypatch.setattr(wakeups[1], "_longest", FOREVER)
    wakeups[0].notify(1)
    checks = iter(range(6))  # the message comes some milliseconds after its wake-up
    wakeups[1].sleep_until(lambda: next(checks) == 5, lambda: None)


def test_whoever_got_a_wakeup_checks_less_often_the_next_time(
    wakeups: list[WakeupSocket], monkeypatch: pytest.MonkeyPatch
):
    now, pauses = [0.0], []
    monkeypatch.setattr(wakeup.time, "perf_counter", lambda: now[0])

    def wait(wakeup_at: int, same_node: bool = False) -> int:
        """Wait a second by a clock that only pauses move, a wake-up in pause `wakeup_at`, if any; return the checks."""
        pauses.clear()

        def pause(seconds: float) -> bool:
            pauses.append(seconds)
            now[0] += seconds
            return len(pauses) == wakeup_at

        monkeypatch.setattr(wakeups[1], "_sleep", pause)
        begun = now[0]
        wakeups[1].sleep_until(lambda: now[0] - begun > 1.0, lambda: None, same_node=same_node)
        return len(pauses)

    on_one_node = [wait(wakeup_at=0), wait(wakeup_at=1), wait(wakeup_at=0)]
    monkeypatch.setattr(wakeups[1], "_one_node", False)
    wary, _, trusting = wait(wakeup_at=0), wait(wakeup_at=1), wait(wakeup_at=0)
    assert trusting < wary / 2
    assert wait(wakeup_at=0) == wait(wakeup_at=0, same_node=True) == wary
    _, same_node = wait(wakeup_at=1), wait(wakeup_at=0, same_node=True)
    assert same_node < trusting / 2
    assert on_one_node == [wary, wary, same_node]


def test_without_wakeups_pauses_end_by_themselves(wakeups: list[WakeupSocket]):
    silent = WakeupSocket(root=False)
    silent.notify(0)
    checks = iter(range(4))
    assert silent.sleep_until(lambda: next(checks) == 3, lambda: None) > 0
    silent.close()


def test_a_host_that_nobody_knows_gets_no_wakeup(wakeups: list[WakeupSocket], monkeypatch: pytest.MonkeyPatch):
    def unknown(host: str) -> str:
        raise socket.gaierror(f"{host} is unknown")

    monkeypatch.setattr(socket, "gethostbyname", unknown)
    assert reachable(["", ""], ["nowhere", "elsewhere"], "elsewhere") == [None, "127.0.0.1"]
    wakeups[0].connect([None, "127.0.0.1"], [1, 2], KEY)
    wakeups[0].notify(0, 1)


def test_any_number_of_wakeups_is_one(wakeups: list[WakeupSocket]):
    wakeups[0].notify(*[1] * 50)
    checks = []
    wakeups[1].sleep_until(lambda: len(checks) > 1, lambda: checks.append(wakeups[1]._sleep(1e-4)))
    assert checks == [True, False]


def test_a_host_reaches_itself_without_its_name():
    hosts = ["node1", "localhost", "node1"]
    assert reachable(["", "", "10.0.0.7"], hosts, "node1") == ["127.0.0.1", "127.0.0.1", "10.0.0.7"]


def test_what_strangers_send_wakes_nobody_and_a_wakeup_behind_it_is_received(wakeups: list[WakeupSocket]):
    stranger = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for number in range(STRANGERS // 2):
        stranger.sendto(
            [b"", b"wake", bytes(2000), sign(bytes(32), b"wake")][number % 4], ("127.0.0.1", wakeups[1].port)
        )
    wakeups[0].notify(1)
    assert wakeups[1]._sleep(FOREVER)
    for _ in range(3 * STRANGERS):
        stranger.sendto(b"x", ("127.0.0.1", wakeups[1].port))
    assert not wakeups[1]._sleep(0.05)
    stranger.close()


def test_all_on_one_node_listen_on_loopback_alone(wakeups: list[WakeupSocket]):
    assert {waker._socket.getsockname()[0] for waker in wakeups} == {"127.0.0.1"}


@given(st.binary(max_size=64), st.integers(0, 200), st.integers(1, 255))
def test_a_datagram_is_believed_only_as_it_was_signed(body: bytes, place: int, flip: int):
    datagram = bytearray(sign(KEY, body))
    assert verified(KEY, bytes(datagram)) == body
    assert verified(bytes(32), bytes(datagram)) is None
    datagram[place % len(datagram)] ^= flip
    assert verified(KEY, bytes(datagram)) is None
