"""Nothing is lost with error feedback: what was not sent is in the sender's state, for every codec."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from codec_tools import encode, make, through
from command import Command, assert_refused
from matrices import random
from simulate import play
from torch import nn

from fedkd_mpi import costlog
from fedkd_mpi.codecs import Codec
from fedkd_mpi.codecs.byte_budget import ByteBudget
from fedkd_mpi.codecs.error_feedback import ErrorFeedback
from fedkd_mpi.codecs.factory import build
from fedkd_mpi.codecs.message import make_message
from fedkd_mpi.codecs.wire import RECORD_BYTES
from fedkd_mpi.config.compression import CompressionConfig
from fedkd_mpi.config.load import parse
from fedkd_mpi.config.training import ServerConfig as Settings
from fedkd_mpi.errors import RunFault, UserError
from fedkd_mpi.models.flat import FlatModel
from fedkd_mpi.simulation.server import Server, apply

CODECS = (
    "none",
    "svd",
    "rdsvd",
    "float16",
    "quantize",
    "topk",
    "powersgd",
    "eden",
    "sign",
    "ternary",
    "dadaquant",
    "sz3",
)
UPDATE = [random(24, 40), random(1, 24).reshape(24), random(8, 54, seed=2).reshape(8, 6, 3, 3)]


@pytest.mark.parametrize("name", CODECS)
def test_original_plus_residual_before_is_decoded_plus_residual_after(name: str):
    codec, state = make(name, *UPDATE, error_feedback="ef"), {}
    for turn in range(4):
        update = [tensor + turn * random(1, tensor.numel(), seed=turn).reshape(tensor.shape) for tensor in UPDATE]
        before = [state.get(f"residual.layer{i}", torch.zeros_like(t)) for i, t in enumerate(update)]
        _, decoded = through(codec, *update, threshold=0.7, state=state, seed=turn)
        for i, (tensor, sent) in enumerate(zip(update, decoded, strict=True)):
            torch.testing.assert_close(tensor + before[i], sent + state[f"residual.layer{i}"], rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("kind", ["ef", "ef21"])
def test_a_constant_update_arrives_in_full_over_time(name: str, kind: str):
    codec, sender, receiver = make(name, *UPDATE, error_feedback=kind), {}, {}
    rounds, total = 60, [torch.zeros_like(tensor) for tensor in UPDATE]
    for turn in range(rounds):
        _, decoded = through(codec, *UPDATE, threshold=0.7, state=sender, seed=turn)
        update = codec.receive(decoded, receiver, 1.0)
        total = [a + b for a, b in zip(total, update, strict=True)] if kind == "ef" else [b * rounds for b in update]
    for sent, tensor in zip(total, UPDATE, strict=True):
        lost = float((sent / rounds - tensor).norm() / tensor.norm())
        assert lost < {"topk": 0.5, "powersgd": 0.5, "sign": 0.2, "dadaquant": 0.1}.get(name, 0.05)


def test_faulty_without_feedback_small_directions_never_arrive():
    codec, state = make("svd", UPDATE[0]), {}
    sent = [through(codec, UPDATE[0], threshold=0.3, state=state)[1][0] for _ in range(10)]
    assert float((sum(sent) / 10 - UPDATE[0]).norm() / UPDATE[0].norm()) > 0.5


@pytest.mark.parametrize("share", [1.0, 0.25])
def test_ef21_receiver_holds_the_mean_of_the_senders_estimates(share: float):
    clients, per_round = 4, round(4 * share)
    codec, senders, receiver = make("svd", UPDATE[0], error_feedback="ef21"), [{} for _ in range(clients)], {}
    rng = np.random.default_rng(0)
    for turn in range(6):
        cohort = rng.choice(clients, per_round, replace=False)
        parts = [
            through(codec, random(24, 40, seed=100 * turn + c), threshold=0.6, state=senders[c])[1][0] for c in cohort
        ]
        (estimate,) = codec.receive([sum(parts) / per_round], receiver, per_round / clients)
    own = [state.get("estimate.layer0", torch.zeros(24, 40)) for state in senders]
    torch.testing.assert_close(estimate, sum(own) / clients, rtol=0, atol=1e-5)


def largest(flat: np.ndarray, count: int) -> np.ndarray:
    kept = np.zeros_like(flat)
    places = np.argsort(-np.abs(flat), kind="stable")[:count]
    kept[places] = flat[places]
    return kept


class Plain:
    """Error feedback of both kinds over flat float64 vectors, with top-k on both legs, as the papers write it.

    ef: Stich et al. 2018, the memory of who is absent stays as it is. ef21: Fatkhullin et al. 2021, EF21-PP and -BC:
    g_i stays where i is absent, and the model moves by what the master's Markov compressor makes of the mean of all.
    """

    def __init__(self, kind: str, clients: int, size: int, count: int):
        self.kind, self.count = kind, count
        self.own, self.master, self.mean = np.zeros((clients, size)), np.zeros(size), np.zeros(size)

    def round(self, updates: dict[int, np.ndarray]) -> np.ndarray:
        sent = []
        for client, update in updates.items():
            wanted = update + self.own[client] if self.kind == "ef" else update - self.own[client]
            sent.append(largest(wanted, self.count))
            self.own[client] = wanted - sent[-1] if self.kind == "ef" else self.own[client] + sent[-1]
        if self.kind == "ef":
            wanted = np.mean(sent, axis=0) + self.master
            step = largest(wanted, self.count)
            self.master = wanted - step
            return step
        self.mean = self.mean + np.sum(sent, axis=0) / len(self.own)
        assert np.allclose(self.mean, self.own.mean(0))
        self.master = self.master + largest(self.mean - self.master, self.count)
        return self.master


@pytest.mark.parametrize("kind", ["ef", "ef21"])
@pytest.mark.parametrize("cohort", [1, 3, 8])
def test_partial_participation_is_that_of_the_papers(kind: str, cohort: int):
    clients, rng = 8, np.random.default_rng(cohort)
    student = FlatModel(nn.Linear(30, 20, bias=False), "cpu")
    compression = CompressionConfig(codec="topk", density=0.1, error_feedback=kind)
    codec = build(compression, student.exchanged_layers)
    server = Server(Settings(learning_rate=0.5), student, codec, "cpu", 0, clients)
    senders, receiver, replica = [{} for _ in range(clients)], {}, student.state.clone()
    truth, plain = replica[:600].double().numpy().copy(), Plain(kind, clients, 600, 60)
    for turn in range(12):
        members = np.sort(rng.choice(clients, cohort, replace=False))
        updates = {int(c): rng.standard_normal(600) + c for c in members if cohort == 1 or (turn, c) != (3, members[0])}
        messages = []
        for c in members:  # one is skipped in round 3
            update = [torch.from_numpy(updates[c].reshape(20, 30)).float()] if c in updates else None
            records = update and codec.encode(update, 0.9, senders[c], rng)
            message = make_message(turn, int(c), 7, records)
            messages.append((message.parsed, message.records(1)))
        mean = server.aggregate(turn, messages)
        down = server.codec.downlink()
        decoded = down.decode(server.encode(turn, mean, 0.9), "cpu")
        apply(student, replica, down.receive(decoded, receiver, 1.0), server.settings, receiver)
        truth += 0.5 * plain.round(updates)
        np.testing.assert_allclose(replica[:600], truth, rtol=0, atol=2e-5)


def test_state_is_tensors_by_layer_and_independent_per_sender():
    codec, first, second = make("svd", *UPDATE, error_feedback="ef"), {}, {}
    encode(codec, *UPDATE, threshold=0.5, state=first)
    encode(codec, *[2 * t for t in UPDATE], threshold=0.5, state=second)
    assert set(first) == {"residual.layer0", "residual.layer1", "residual.layer2"}
    torch.testing.assert_close(2 * first["residual.layer0"], second["residual.layer0"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["svd", "rdsvd"])
@pytest.mark.parametrize("budget", [1200, 2500, 4000])
def test_byte_budget_is_met_from_below(name: str, budget: int):
    codec: Codec = make(name, *UPDATE, byte_budget=budget)
    state: dict[str, torch.Tensor] = {}
    for turn in range(3):
        records = encode(codec, *UPDATE, state=state, seed=turn)
        size = sum(13 + record.data.size for record in records)
        assert size <= budget
        if name == "rdsvd":
            assert size > 0.8 * min(budget, 1900)  # all there is to send at the finest threshold


@pytest.mark.parametrize("name", ["svd", "rdsvd"])
@pytest.mark.parametrize("key", ["byte_budget", "run_budget"])
def test_the_least_budget_is_told_before_the_first_round_and_is_enough_for_all(
    command: Command, tmp_path: Path, name: str, key: str
):
    def run(budget: int) -> tuple[int, str, str]:
        return command(f"compression.codec={name}", f"compression.{key}={budget}", "--output", tmp_path / "log.h5")

    refused = run(1)
    assert_refused(refused, f"compression.{key}=1 is too small: ")
    least = int(refused[2].rsplit(maxsplit=1)[1])
    assert_refused(run(least - 1), f"; give at least {least}")
    assert run(least)[0] == 0
    log = costlog.read(tmp_path / "log.h5")
    if key == "run_budget":
        assert sum(log["rounds"]["uplink_bytes"] + log["rounds"]["downlink_bytes"]) <= least
    else:
        assert (log["uplink"]["bytes"] - log["uplink"]["header_bytes"]).max() <= least


def test_an_update_that_does_not_fit_is_left_to_the_residual():
    layers = make("rdsvd", *UPDATE).layers
    inner = build(CompressionConfig(codec="rdsvd"), layers)
    codec, state = ErrorFeedback(ByteBudget(inner, [RECORD_BYTES * len(layers)])), {}
    _, decoded = through(codec, *UPDATE, state=state)
    for i, (tensor, sent) in enumerate(zip(UPDATE, decoded, strict=True)):
        assert not sent.any()
        torch.testing.assert_close(state[f"residual.layer{i}"], tensor, rtol=0, atol=0)


def test_a_budget_that_not_even_vectors_fit_is_a_fault_that_names_the_bytes():
    codec = ByteBudget(make("svd", *UPDATE), [40])
    with pytest.raises(RunFault, match=r"allows 40 bytes per message, but the smallest message has \d+: raise"):
        encode(codec, *UPDATE)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"codec": "svd", "bits": 8}, r"compression\.bits belongs to compression\.codec=quantize"),
        ({"codec": "quantize", "bits": 5}, r"compression\.bits=5: compression\.codec=quantize has 4, 8 or 16"),
        ({"codec": "topk", "bits": 0.5}, r"compression\.bits=0\.5: compression\.codec=topk has 1, 2, 8 or 32"),
        ({"codec": "eden", "bits": 5}, r"compression\.bits=5: compression\.codec=eden has at most 4"),
        ({"codec": "rdsvd", "energy_scope": "model"}, "error_feedback"),
        ({"codec": "fetchsgd", "error_feedback": "ef"}, "its own residual"),
        ({"codec": "topk", "byte_budget": 100}, r"compression\.byte_budget"),
        ({"codec": "topk", "run_budget": 100}, r"compression\.run_budget"),
        ({"byte_budget": 100, "run_budget": 100}, r"one of compression\.byte_budget"),
        ({"budget_growth": 2}, r"compression\.budget_growth"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(keys: dict, message: str):
    network = {"name": "mlp", "learning_rate": 0.1}
    tree = {"rounds": 1, "num_clients": 1, "data": {"name": "digits"}, "local": {"steps": 1}, "compression": keys}
    with pytest.raises(UserError, match=message):
        parse({**tree, "teacher": network, "student": network})


@pytest.mark.parametrize("growth", [1.0, 3.0])
def test_a_budget_of_the_run_is_spent_over_its_rounds_and_not_exceeded(growth: float):
    budget = 24_000
    settings = ["compression.codec=rdsvd", "compression.error_feedback=ef", f"compression.run_budget={budget}"]
    _, log = play("num_clients=4", "rounds=4", *settings, f"compression.budget_growth={growth}")
    spent = log["rounds"]["uplink_bytes"] + log["rounds"]["downlink_bytes"]
    assert 0.9 * budget < sum(spent) <= budget
    assert spent[-1] / spent[0] == pytest.approx(growth, rel=0.1)
    energies = log["uplink"]["layer_energy"]
    assert ((energies > 0) & (energies <= 1)).any(axis=1).all()
