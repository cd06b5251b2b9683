"""The server's mean against float64 arithmetic, and what it says of bad messages."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from fedkd_mpi.codecs import factory, svd
from fedkd_mpi.codecs.message import make_message
from fedkd_mpi.codecs.tags import LOW_RANK, RAW
from fedkd_mpi.codecs.wire import SKIPPED, Header, Record
from fedkd_mpi.config.compression import CompressionConfig
from fedkd_mpi.config.training import ServerConfig as Settings
from fedkd_mpi.errors import RunFault
from fedkd_mpi.models.flat import FlatModel
from fedkd_mpi.models.layer import Layer
from fedkd_mpi.simulation.server import Server, apply, catchup_state_bytes

ROUND = 4


def make(codec: str = "none", **settings: object) -> Server:
    torch.manual_seed(0)
    student = FlatModel(nn.Sequential(nn.Linear(9, 20), nn.Linear(20, 3)), "cpu")
    compression = CompressionConfig(codec=codec)
    return Server(Settings(**settings), student, factory.build(compression, student.exchanged_layers), "cpu", 0, 3)


def updates(server: Server, count: int) -> list[list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [[torch.randn(layer.shape, generator=generator) for layer in server.student.layers] for _ in range(count)]


def message(
    server: Server, client: int, samples: int, update: list[torch.Tensor] | None
) -> tuple[Header, list[Record]]:
    records = None if update is None else server.codec.encode(update, 0.95, {}, np.random.default_rng(0))
    sent = make_message(ROUND, client, samples, records)
    return sent.parsed, sent.records(len(server.student.layers))


def flat(server: Server, tensors: list[np.ndarray]) -> torch.Tensor:
    vector = torch.zeros_like(server.student.state)
    for view, tensor in zip(server.student.views(vector), tensors, strict=True):
        view.copy_(torch.from_numpy(np.asarray(tensor)))
    return vector


RANKS = st.lists(st.tuples(*(st.integers(-1, 4) for _ in range(2)), st.integers(0, 9)), min_size=1, max_size=12)


@given(RANKS, st.integers(1, 300))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_sum_of_factors_and_raw_tensors_is_that_of_float64(
    monkeypatch: pytest.MonkeyPatch, messages: list[tuple[int, int, int]], most: int
):
    """However many messages wait for each other: at rank -1 a matrix is raw; weights may be zero."""
    monkeypatch.setattr(svd, "ENTRIES", most)
    layers = [Layer("a", (6, 2, 2), True), Layer("bias", (3,), False), Layer("b", (4, 9), True), Layer("s", (), False)]
    total = factory.build(CompressionConfig(codec="svd"), layers).sum("cpu")
    truth, rng = [np.zeros(layer.shape) for layer in layers], np.random.default_rng(0)
    for first, second, weight in messages:
        records = []
        for each, layer, rank in zip(truth, layers, (first, -1, second, -1), strict=True):
            rows, columns = layer.matrix_shape
            left, right = rng.normal(size=(rows, max(rank, 0))), rng.normal(size=(max(rank, 0), columns))
            numbers = [left.ravel(), right.ravel()] if rank >= 0 else [rng.normal(size=layer.numel)]
            sent = np.concatenate(numbers).astype("<f4")
            records.append(Record(LOW_RANK if rank >= 0 else RAW, rank, sent.view(np.uint8)))
            dense = (left @ right if rank >= 0 else numbers[0]).reshape(layer.shape)
            each += weight * dense
        total.add(records, weight)
    for tensor, expected in zip(total.take(), truth, strict=True):
        np.testing.assert_allclose(tensor.numpy(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("weighting", ["uniform", "samples"])
def test_the_mean_is_that_of_float64(weighting: str):
    server = make(weighting=weighting)
    samples = [7, 100, 1, 30]
    sent = updates(server, 4)
    messages = [message(server, client, samples[client], sent[client]) for client in range(4)]
    result = server.aggregate(ROUND, messages)
    weights = samples if weighting == "samples" else [1, 1, 1, 1]
    truth = [np.average([u[i].double().numpy() for u in sent], axis=0, weights=weights) for i in range(4)]
    torch.testing.assert_close(result, flat(server, truth), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weighting", ["uniform", "samples"])
def test_a_skipped_client_has_no_weight(weighting: str):
    server = make(weighting=weighting)
    sent = updates(server, 2)
    first, last, skipped = (
        message(server, 0, 7, sent[0]),
        message(server, 2, 9, sent[1]),
        message(server, 1, 1000, None),
    )
    assert (skipped[0].kind, skipped[1]) == (SKIPPED, [])
    without = server.aggregate(ROUND, [first, last])
    result = server.aggregate(ROUND, [first, skipped, last])
    assert torch.equal(result, without)


def test_nobody_left_is_no_update():
    server = make()
    assert server.aggregate(ROUND, [message(server, 0, 7, None), message(server, 1, 7, None)]) is None


def test_a_record_that_does_not_fit_names_client_and_layer():
    server = make()
    header, records = message(server, 6, 7, updates(server, 1)[0])
    records[2] = Record(records[2].encoding, -1, records[2].data[4:])
    with pytest.raises(RunFault, match=r"uplink message: layer 1.weight: 236 bytes instead of 240") as caught:
        server.aggregate(ROUND, [(header, records)])
    assert caught.value.location() == "round 5, client 6"


def test_finite_updates_whose_sum_is_not_are_caught_before_the_factorisation():
    server = make("svd")
    sent = updates(server, 2)
    for update in sent:
        update[2][1, 1] = 3e38
    mean = server.aggregate(ROUND, [message(server, client, 1, update) for client, update in enumerate(sent)])
    with pytest.raises(RunFault, match="mean of the updates is not finite") as caught:
        server.encode(ROUND, mean, 0.95)
    assert caught.value.location() == "round 5, layer 1.weight"


def test_the_downlink_is_cut_a_second_time():
    server = make("svd")
    update = flat(server, [np.outer(np.arange(20), np.arange(9)), np.ones(20), np.eye(3, 20), np.zeros(3)])
    records = server.encode(ROUND, update, 0.95)
    assert [record.rank for record in records] == [1, -1, -1, -1]
    decoded = server.codec.decode(records, "cpu")
    for tensor, view in zip(decoded, server.student.exchanged(update), strict=True):
        torch.testing.assert_close(tensor, view, rtol=1e-5, atol=1e-5)


def test_apply_moves_the_replica_by_the_learning_rate():
    server = make()
    replica = server.student.state.clone()
    (update,) = updates(server, 1)
    apply(server.student, replica, update, Settings(learning_rate=0.25), {})
    expected = server.student.state + 0.25 * flat(server, [tensor.numpy() for tensor in update])
    torch.testing.assert_close(replica, expected)
    assert not torch.equal(replica, server.student.state)


PUBLISHED = {  # the second moment of Algorithm 2 of Reddi et al. 2021
    "fedadagrad": lambda v, square, beta2: v + square,
    "fedadam": lambda v, square, beta2: beta2 * v + (1 - beta2) * square,
    "fedyogi": lambda v, square, beta2: v - (1 - beta2) * square * np.sign(v - square),
}


@pytest.mark.parametrize("rates", [{}, {"beta1": 0.5, "beta2": 0.9, "tau": 0.1}, {"beta1": 0.0, "tau": 1e-9}])
@pytest.mark.parametrize("optimizer", PUBLISHED)
def test_adaptive_servers_are_algorithm_2_of_their_paper_on_the_parameters_alone(
    optimizer: str, rates: dict[str, float]
):
    student = FlatModel(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), "cpu")
    given = {key: value for key, value in rates.items() if (key, optimizer) != ("beta2", "fedadagrad")}
    settings, state = Settings(optimizer=optimizer, learning_rate=0.01, **given), {}
    beta1, beta2, tau = (
        {"beta1": 0.0 if optimizer == "fedadagrad" else 0.9, "beta2": 0.99, "tau": 1e-3} | rates
    ).values()
    replica = student.state.clone()
    truth = [view.double().numpy() for view in student.views(replica.clone())]
    m, v = [np.zeros_like(x) for x in truth[:4]], [np.full_like(x, tau**2) for x in truth[:4]]
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        update = [torch.randn(layer.shape, generator=generator) / 100 for layer in student.exchanged_layers]
        update[0][0] = 0  # nothing moves where nothing was sent
        apply(student, replica, update[:4], settings, state, update[4:])
        delta = [tensor.double().numpy() for tensor in update]
        for i in range(4):
            m[i] = beta1 * m[i] + (1 - beta1) * delta[i]
            v[i] = PUBLISHED[optimizer](v[i], delta[i] ** 2, beta2)
            truth[i] = truth[i] + 0.01 * m[i] / (np.sqrt(v[i]) + tau)
        truth[4:] = delta[4:]
    for view, expected in zip(student.views(replica), truth, strict=True):
        np.testing.assert_allclose(view.detach(), expected, rtol=1e-5, atol=1e-6)


def test_a_server_with_momentum_is_torchs_sgd_on_the_negative_mean_update():
    student = FlatModel(nn.Linear(5, 4), "cpu")
    settings, state, replica = Settings(learning_rate=0.5, momentum=0.9), {}, student.state.clone()
    truth = [view.clone() for view in student.exchanged_parts(replica)[0]]
    plain = torch.optim.SGD(truth, 0.5, 0.9)
    for seed in range(4):
        update = [torch.randn(view.shape, generator=torch.Generator().manual_seed(seed)) for view in truth]
        apply(student, replica, update, settings, state)
        for tensor, change in zip(truth, update, strict=True):
            tensor.grad = -change
        plain.step()
    for view, expected in zip(student.exchanged_parts(replica)[0], truth, strict=True):
        torch.testing.assert_close(view, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("feedback", ["none", "ef", "ef21"])
@pytest.mark.parametrize(
    ("server", "vectors"),
    [
        ({}, 0),
        ({"momentum": 0.5}, 1),
        ({"optimizer": "fedadagrad"}, 1),
        ({"optimizer": "fedadam"}, 2),
        ({"optimizer": "fedyogi"}, 2),
        ({"optimizer": "fedyogi", "beta1": 0.0}, 1),
    ],
)
def test_what_a_newcomer_must_fetch_is_what_a_receiver_keeps(server: dict[str, Any], vectors: int, feedback: str):
    student = FlatModel(nn.Linear(5, 4), "cpu")
    codec = factory.build(
        CompressionConfig(codec="topk", density=0.5, error_feedback=feedback), student.exchanged_layers
    )
    settings, state = Settings(learning_rate=0.1, **server), {}
    update = [torch.ones(layer.shape) for layer in student.exchanged_layers]
    decoded = codec.decode(codec.encode(update, 0.9, {}, np.random.default_rng(0)), "cpu")
    apply(student, student.state.clone(), codec.receive(decoded, state, 1.0), settings, state)
    padding = 4 * vectors * (student.trainable.numel() - 24)
    assert catchup_state_bytes(student, codec, settings) == sum(t.nbytes for t in state.values()) - padding


def test_apply_leaves_local_buffers_alone():
    student = FlatModel(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), "cpu", exchange_buffers=False)
    replica = student.state.clone()
    apply(student, replica, [torch.ones(layer.shape) for layer in student.exchanged_layers], Settings(), {})
    before, after = student.views(student.state), student.views(replica)
    assert all(torch.equal(a, b + 1) for a, b in zip(after[:4], before[:4], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(after[4:], before[4:], strict=True))
