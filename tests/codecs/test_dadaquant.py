"""Codec dadaquant: when the levels double, and that what is sent is right on average at each of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from codec_tools import encode, make, through
from matrices import random
from simulate import play

from fedkd_mpi.codecs.dadaquant import levels_after
from fedkd_mpi.codecs.tags import DADAQUANT
from fedkd_mpi.codecs.wire import Record, WireError

FALLING = [0.9**turn for turn in range(30)]


def test_levels_stay_while_the_loss_falls_and_double_when_it_does_not():
    assert {levels_after(FALLING[:turn], 3, 128) for turn in range(31)} == {1}
    flat = [levels_after([2.0] * turn, 3, 16) for turn in range(20)]
    assert flat[:11] == [1, 1, 1, 1, 2, 2, 2, 4, 4, 4, 8]  # once in three rounds, from the first that has one before
    assert flat[-1] == 16
    assert levels_after([2.0] * 50, 3, 16) == 16
    plateau = [levels_after(FALLING + [FALLING[-1]] * more, 3, 128) for more in range(60)]
    assert plateau[0] == 1  # the running average comes down first
    assert sorted(plateau) == plateau
    assert plateau[-1] == 1  # it still falls, ever less
    assert levels_after([*FALLING, *[1.0] * 20], 3, 128) > 1


def test_a_round_without_a_loss_changes_no_average():
    with_gap = [1.0, float("nan"), 0.9, 0.8]
    assert levels_after([float("nan")] * 9, 2, 128) == 1
    assert levels_after(with_gap, 3, 128) == levels_after([1.0, 0.9, 0.8], 3, 128) == 1


@pytest.mark.parametrize("stalled", [0, 4, 10])
def test_it_is_unbiased_at_every_level(stalled: int):
    tensor, draws = random(16, 20), 300
    codec = make("dadaquant", tensor, patience=1, bits=4).follow([1.0] * stalled)
    assert codec.levels == min(2 ** max(stalled - 1, 0), 8)
    mean = torch.stack([through(codec, tensor, seed=seed)[1][0] for seed in range(draws)]).mean(0)
    step = float(tensor.abs().max()) / codec.levels
    assert float((mean - tensor).abs().max()) < 5 * step * 0.5 / np.sqrt(draws)
    (decoded,) = through(codec, tensor)[1]
    assert float((decoded - tensor).abs().max()) <= step * 1.001


def test_a_receiver_reads_any_levels_with_feedback_too():
    tensor = random(16, 20)
    receiver = make("dadaquant", tensor, error_feedback="ef")
    sender = receiver.follow([1.0] * 30)
    records = encode(sender, tensor)
    assert records[0].data.size > 2 * encode(receiver, tensor)[0].data.size
    (decoded,) = receiver.decode(records, "cpu")
    assert float((decoded - tensor).abs().max()) <= float(tensor.abs().max()) / 16


def test_messages_of_a_run_grow_when_its_loss_does_not_fall():
    still = [
        "num_clients=4",
        "rounds=8",
        "student.learning_rate=1e-9",
        "teacher.learning_rate=1e-9",
        "compression.codec=dadaquant",
    ]
    run, log = play(*still, "compression.patience=1", "evaluate.every=8")
    losses, sent = log["rounds"]["student_loss"], log["rounds"]["uplink_bytes"]
    assert run.exchange.codec.levels == run.exchange.server.codec.levels == levels_after(losses[:7], 1, 128) > 4
    assert sent[-1] > 1.5 * sent[0]


@pytest.mark.parametrize("levels", [1, 4, 64])
def test_with_feedback_it_is_a_contraction_at_every_level(levels: int):
    tensor = random(16, 20)
    codec = make("dadaquant", tensor, error_feedback="ef", patience=1).follow([1.0] * int(2 * np.log2(levels)))
    (decoded,) = through(codec, tensor)[1]
    assert float((decoded - tensor).norm()) < float(tensor.norm())
    assert float((decoded - tensor).abs().max()) <= float(tensor.abs().max()) / 2


@pytest.mark.parametrize(("scale", "levels"), [(np.nan, 1), (-1.0, 1), (1.0, 0)])
def test_a_head_that_cannot_be_is_refused(scale: float, levels: int):
    tensor = random(9, 9)
    data = encode(make("dadaquant", tensor), tensor)[0].data.copy()
    data[:6] = np.r_[np.array([scale], "<f4").view(np.uint8), np.array([levels], "<u2").view(np.uint8)]
    with pytest.raises(WireError, match=r"layer0: (invalid magnitude|no levels)"):
        make("dadaquant", tensor).decode([Record(DADAQUANT, -1, data)], "cpu")
