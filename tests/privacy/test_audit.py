"""An attacker who tries to tell whether a client takes part: what it gains stays below what epsilon allows.

The client's updates are as long as clipping admits, and the attacker knows them and all others: no one does better. It
sees what the server sends in every round, and guesses by the likelihood of the two runs.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from fedkd_mpi.codecs import factory
from fedkd_mpi.codecs.message import make_message
from fedkd_mpi.config.compression import CompressionConfig
from fedkd_mpi.config.training import ServerConfig
from fedkd_mpi.models.flat import FlatModel
from fedkd_mpi.privacy.accountant import Accountant, epsilon_of, log_delta
from fedkd_mpi.privacy.mechanism import Mechanism
from fedkd_mpi.simulation.private_sum import PrivateSum
from fedkd_mpi.simulation.server import Server

CLIP, ROUNDS, COHORT, REPETITIONS = 0.3, 3, 4, 400
SURE = 4.0  # standard deviations


STUDENT = FlatModel(nn.Linear(3, 2), "cpu")


def make(noise_multiplier: float, seed: int) -> Server:
    student, codec = STUDENT, factory.build(CompressionConfig(codec="none"), STUDENT.parameter_layers)
    mechanism = Mechanism(CLIP, noise_multiplier, False, seed)
    private = partial(PrivateSum, codec, "cpu", mechanism, student.parameter_layers, COHORT)
    return Server(ServerConfig(), student, codec, "cpu", seed, COHORT, private)


def towards(update: np.ndarray, noise_multiplier: float, seed: int, *, present: bool) -> float:
    """Return how far the rounds' means lie in the direction of the client's update, as a sum over the rounds."""
    server, total = make(noise_multiplier, seed), 0.0
    weight, bias = torch.from_numpy(update * present).float().split([6, 2])
    records = server.codec.encode([weight.reshape(2, 3), bias], 0.95, {}, np.random.default_rng(0))
    for round_index in range(ROUNDS):
        sent = make_message(round_index, 0, 1, records)
        messages = [(sent.parsed, sent.records(2))]  # those of the others are known, and left out
        mean = server.aggregate(round_index, messages)
        assert mean is not None
        total += float(np.concatenate([part.numpy().reshape(-1) for part in server.student.exchanged(mean)]) @ update)
    return total


def advantages(real_noise: float) -> dict[float, tuple[float, float]]:
    """Return for some epsilon what the attacker gains above it, P(hit) - exp(epsilon) P(false alarm), and its error."""
    update = 9.0 * np.random.default_rng(5).standard_normal(8)  # far above C: clipping makes it as long as C
    seen = np.array([
        [towards(update, real_noise, 2 * seed + present, present=bool(present)) for seed in range(REPETITIONS)]
        for present in (0, 1)
    ])  # fmt: skip
    scale, mu = CLIP * np.linalg.norm(update) / COHORT, math.sqrt(ROUNDS)
    found = {}
    for epsilon in (0.0, 0.5, 1.0):
        threshold = scale * (epsilon / mu * math.sqrt(ROUNDS) + mu / 2 * math.sqrt(ROUNDS))  # the likelier run at z = 1
        alarm, hit = (seen > threshold).mean(axis=1)
        error = math.sqrt((hit * (1 - hit) + math.exp(2 * epsilon) * alarm * (1 - alarm)) / REPETITIONS)
        found[epsilon] = hit - math.exp(epsilon) * alarm, error
    return found


def test_an_attacker_gains_what_epsilon_allows_and_more_if_the_noise_is_halved() -> None:
    accountant = Accountant(range(1, ROUNDS + 1), 1.0, 0.5)
    mu = math.sqrt(accountant.counts[-1]) / accountant.noise_multiplier
    allowed = {epsilon: math.exp(log_delta(epsilon, mu)) for epsilon in (0.0, 0.5, 1.0)}
    for epsilon, delta in allowed.items():  # the log's epsilon at this delta
        assert Accountant(range(1, ROUNDS + 1), 1.0, delta).epsilon(ROUNDS) == pytest.approx(epsilon, abs=1e-9)
        assert epsilon_of(mu, delta) == pytest.approx(epsilon, abs=1e-9)
    for epsilon, (gain, error) in advantages(1.0).items():
        assert gain <= allowed[epsilon] + SURE * error
        assert gain >= allowed[epsilon] - SURE * error  # the accountant does not say more than is so
    for epsilon, (gain, error) in advantages(0.5).items():
        assert gain > allowed[epsilon] + SURE * error, "halved noise is not seen"
