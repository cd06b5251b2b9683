"""Messages between processes: order, exact counts, damage."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedkd_mpi.codecs.message import Message, make_message
from fedkd_mpi.codecs.wire import HEADER_BYTES, RECORD_BYTES, SERVER, SKIPPED, UPDATE, Record
from fedkd_mpi.common.stopwatch import Stopwatch
from fedkd_mpi.communication import exchange
from fedkd_mpi.communication.exchange import WINDOW, arrival, downlink, uplink
from fedkd_mpi.communication.launch import World
from fedkd_mpi.errors import RunFault

HOSTS = np.array([3, 0, 1, 0, 2])  # of five clients, on so many processes or fewer; on more, some send nothing
LAYERS = 2


def own_clients(world: World) -> list[int]:
    """Clients of this process."""
    return np.flatnonzero(HOSTS % world.world_size == world.mpi_rank).tolist()


def records(client: int, round_index: int = 0) -> list[Record]:
    """Records whose sizes and bytes differ from client to client; client 3's hold no data at all."""
    size = 0 if client == 3 else 1000 * client + round_index
    return [Record(0, -1, np.full(size, client, np.uint8)), Record(1, client, np.full(client, 255 - client, np.uint8))]


@pytest.mark.mpi
@pytest.mark.parametrize("window", [2**23, 2500, 0])  # all at once, some of them, one by one
@pytest.mark.parametrize("limit", [2**31 - 1, 997])
def test_messages_arrive_in_client_order_and_whole(
    monkeypatch: pytest.MonkeyPatch, world: World, limit: int, window: int
):
    monkeypatch.setattr(exchange, "WINDOW", window)
    world.count_limit = limit
    hosts = HOSTS % world.world_size
    for round_index in range(2):
        sent = [None if client == 2 else records(client, round_index) for client in range(5)]
        own = [make_message(round_index, client, 10 + client, sent[client]) for client in own_clients(world)]
        arrived = list(uplink(world, Stopwatch(), own, hosts))
        if not world.is_root:
            assert not arrived
            continue
        assert [message.parsed.sender for message in arrived] == list(range(5))
        assert [message.parsed.samples for message in arrived] == [10, 11, 12, 13, 14]
        assert [message.parsed.kind for message in arrived] == [UPDATE, UPDATE, SKIPPED, UPDATE, UPDATE]
        for client, message in enumerate(arrived):
            for got, expected in zip(message.records(LAYERS), sent[client] or [], strict=True):
                assert got[:2] == expected[:2]
                assert got.data.tobytes() == expected.data.tobytes()


@pytest.mark.mpi
@pytest.mark.parametrize("content", [records(4), [], None])
def test_the_answer_reaches_everyone(world: World, content: list[Record] | None):
    sent = make_message(7, SERVER, 0, content)
    answer = downlink(world, Stopwatch(), sent if world.is_root else None)
    assert answer.header.tobytes() == sent.header.tobytes()
    assert answer.payload.tobytes() == sent.payload.tobytes()


@pytest.mark.mpi
@pytest.mark.parametrize("window", [2**23, 2500])
def test_the_server_asks_for_a_window_only_after_the_last_has_been_read(
    monkeypatch: pytest.MonkeyPatch, world: World, window: int
):
    monkeypatch.setattr(exchange, "WINDOW", window)
    hosts = HOSTS % world.world_size
    own = [make_message(0, client, 1, records(client)) for client in own_clients(world)]
    held, gather = [], world.gather

    def watched(*arguments: Any, **options: Any) -> np.ndarray | None:
        whole = gather(*arguments, **options)
        held.append(0 if whole is None else whole.size)
        return whole

    monkeypatch.setattr(world, "gather", watched)
    for message in uplink(world, Stopwatch(), own, hosts):
        assert held[-1] <= max(window, message.whole.size)
    assert len(held) == (1 if window > 2500 else 3)  # 66 + 1067, 2068 + 69, 4070 bytes


@given(sizes=st.lists(st.integers(0, 3 * WINDOW), max_size=50))
def test_windows_hold_all_messages_in_order_and_no_more_than_fit(sizes: list[int]):
    parts = [sizes[start:stop] for start, stop in exchange.windows(np.array(sizes, np.int64))]
    assert [size for part in parts for size in part] == sizes
    assert all(len(part) == 1 or sum(part) <= WINDOW for part in parts)
    assert all(sum(part) + after[0] > WINDOW for part, after in pairwise(parts))


@pytest.mark.mpi
def test_what_is_counted_is_what_the_messages_hold(world: World):
    world.take_counters()
    hosts = HOSTS % world.world_size
    own = [make_message(0, client, 1, records(client)) for client in own_clients(world)]
    list(uplink(world, Stopwatch(), own, hosts))
    counted = world.take_counters()
    held = [2 * RECORD_BYTES + HEADER_BYTES + sum(r.data.size for r in records(client)) for client in range(5)]
    mine, everyone = sum(held[client] for client in own_clients(world)), sum(held)
    if world.is_root:
        assert (counted.payload_bytes_sent, counted.payload_bytes_received) == (0, everyone - mine)
    else:
        assert (counted.payload_bytes_sent, counted.payload_bytes_received) == (mine, 0)
    answer = make_message(0, SERVER, 0, records(4))
    size = answer.header.size + answer.payload.size
    downlink(world, Stopwatch(), answer if world.is_root else None)
    counted = world.take_counters()
    received = 0 if world.is_root else size
    sent = size * (world.world_size - 1) if world.is_root else 0
    assert (counted.payload_bytes_sent, counted.payload_bytes_received) == (sent, received)


def damaged(what: str) -> Message:
    message = make_message(2, 5, 10, records(1))
    if what == "flipped":
        message.payload[100] ^= 1
    return Message(message.whole[:-1] if what == "short" else message.whole)


@pytest.mark.parametrize(
    ("what", "layers", "reason"),
    [
        ("flipped", LAYERS, "checksum"),
        ("short", LAYERS, "1027 bytes of payload, but 1026 arrived"),
        ("whole", LAYERS + 1, "message has 2 records, but the student has 3 layers"),
    ],
)
def test_damage_names_round_and_sender(what: str, layers: int, reason: str):
    with pytest.raises(RunFault, match=f"damaged message: .*{reason}") as caught:
        damaged(what).records(layers)
    assert caught.value.location() == "round 3, client 5"
    server = make_message(2, SERVER, 0, records(1))
    with pytest.raises(RunFault, match="damaged message") as caught:
        server.records(LAYERS + 1)
    assert caught.value.location() == "round 3"


@pytest.mark.mpi
@pytest.mark.parametrize("length", [0, HEADER_BYTES - 1])
def test_a_length_that_holds_no_header_is_refused_by_all_and_names_the_process(world: World, length: int):
    last = world.world_size - 1
    own = [make_message(0, 1, 1, [])] if world.mpi_rank == 1 else []
    if world.mpi_rank == last:
        own = [Message(np.zeros(length, np.uint8))]
    with pytest.raises(RunFault, match=f"damaged message: rank {last} announces {length} bytes"):
        list(uplink(world, Stopwatch(), own, np.array([1, last])))


@pytest.mark.mpi
def test_a_message_that_is_none_names_the_process_it_came_from(world: World):
    own = [] if world.is_root else [make_message(0, world.mpi_rank, 1, records(1))]
    if world.mpi_rank == world.world_size - 1:
        own[0].header[0] ^= 1
    arriving = uplink(world, Stopwatch(), own, np.arange(1, world.world_size))
    if not world.is_root:
        assert not list(arriving)
        return
    for _ in range(world.world_size - 2):
        assert next(arriving).records(LAYERS)
    with pytest.raises(RunFault, match=f"damaged message of rank {world.world_size - 1}: message starts with"):
        next(arriving)


def test_a_message_does_not_follow_the_weights_it_was_made_of():
    data = np.arange(8, dtype=np.uint8)
    message = make_message(0, 0, 1, [Record(0, -1, data)])
    data[:] = 0
    assert message.records(1)[0].data.tolist() == list(range(8))


@given(st.lists(st.integers(0, 6), max_size=30))
def test_arrival_undoes_the_order_of_ranks(ranks: list[int]):
    hosts = np.array(ranks, np.int64)
    gathered = np.concatenate([np.flatnonzero(hosts == rank) for rank in range(7)])
    assert gathered[arrival(hosts)].tolist() == list(range(len(ranks)))
