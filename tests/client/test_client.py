"""A client: its update, what it keeps from round to round, its scores, its faults, its batches."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional
from trainer import BATCH_NORM, LocalSetup, make

from fedkd_mpi.client import batches as batches_module
from fedkd_mpi.client.batches import Batches, Samples, batches, order_of
from fedkd_mpi.client.client import Client
from fedkd_mpi.common.random_streams import generator
from fedkd_mpi.config.load import load
from fedkd_mpi.config.sections import LocalConfig
from fedkd_mpi.errors import RunFault
from fedkd_mpi.tasks.image_classification import ImageClassification


def test_the_update_is_a_difference_and_the_replica_stays():
    # .detach() and .numpy() are views: a "copy" of that kind follows the training and every update is zero
    local = make()
    before = local.replica.clone()
    outcome = local.train(0)
    assert torch.equal(local.replica, before)
    assert outcome.update.abs().max() > 1e-3
    assert torch.equal(outcome.update, local.trainer.student.state - before)
    kept = outcome.update.clone()
    local.train(1)
    assert torch.equal(outcome.update, kept)


@pytest.mark.parametrize(
    "optimizer", [["optimizer.momentum=0.9"], ["optimizer.name=adam", "optimizer.momentum=0"]], ids=["sgd", "adam"]
)
def test_optimizers_live_with_their_client(optimizer: list[str]):
    local = make(*optimizer)
    local.train(0)
    outcomes = []
    for forgotten in ("nothing", "optimizer.private.", "optimizer.student."):
        client = local.clients[0]
        kept = {name: tensor.clone() for name, tensor in client.tensors.items() if not name.startswith(forgotten)}
        assert (len(kept) < len(client.tensors)) == (forgotten != "nothing")
        again = Client(0, client.train_indices, client.test_indices, kept)
        outcomes.append((local.trainer.train(again, 1, local.replica, evaluate=False).update, kept["private"]))
    (update, teacher), (_, fresh_teacher), (fresh_update, _) = outcomes
    assert not torch.equal(teacher, fresh_teacher)
    assert not torch.equal(update, fresh_update)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["optimizer.name=adam", "optimizer.momentum=0"],
        [*BATCH_NORM, "server.buffers=local"],
        [*BATCH_NORM, "server.buffers=average"],
    ],
    ids=["sgd", "adam", "buffers local", "buffers average"],
)
def test_what_a_client_learns_does_not_depend_on_who_else_is_trained(overrides: list[str]):
    visits = {"alone": [1], "after others": [0, 1, 2], "before others": [1, 2, 0]}
    results = []
    for order in visits.values():
        local = make(*overrides, side=8)
        updates = {}
        for round_index in range(2):
            for client in order:
                updates[round_index, client] = local.train(client, round_index, evaluate=True).update
        results.append((local.clients[1].tensors, updates[0, 1], updates[1, 1]))
    (tensors, *updates), *others = results
    for other, *more in others:
        assert other.keys() == tensors.keys()
        assert all(torch.equal(tensors[name], other[name]) for name in tensors)
        assert all(map(torch.equal, updates, more))


@pytest.mark.parametrize("on_nonfinite", ["abort", "skip"])
@pytest.mark.parametrize(
    ("overrides", "message", "layer"),
    [
        (["student.learning_rate=1e30"], "the update of the student is not finite", "layers.0.weight"),
        (
            ["teacher.learning_rate=1e30"],
            "the private state (teacher and W_h) is not finite",
            "teacher.layers.0.weight",
        ),
    ],
    ids=["student", "teacher"],
)
def test_what_is_not_finite_is_named(overrides: list[str], message: str, layer: str, on_nonfinite: str):
    alone = ["distillation.logits=false", "distillation.hidden=false"]
    local = make(*overrides, *alone, f"on_nonfinite={on_nonfinite}")
    before = local.replica.clone()
    with pytest.raises(RunFault) as caught:
        local.train(2, 3)
    assert (str(caught.value), caught.value.location()) == (message, f"round 4, client 2, layer {layer}")
    assert torch.equal(local.replica, before)


@pytest.mark.parametrize("buffers", ["local", "average"])
@pytest.mark.parametrize("first", [True, False], ids=["first round", "later round"])
def test_skip_leaves_the_client_as_it_was(first: bool, buffers: str):
    local = make("on_nonfinite=skip", *BATCH_NORM, f"server.buffers={buffers}", "optimizer.momentum=0.9", side=8)
    healthy = make("on_nonfinite=skip", *BATCH_NORM, f"server.buffers={buffers}", "optimizer.momentum=0.9", side=8)
    if not first:
        local.train(0), healthy.train(0)
    before = {name: tensor.clone() for name, tensor in local.clients[0].tensors.items()}
    replica, local.replica = local.replica, local.replica * float("nan")
    with pytest.raises(RunFault):
        local.train(0, 1)
    local.replica = replica
    after = local.clients[0].tensors
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert torch.equal(local.train(0, 2).update, healthy.train(0, 2).update)


def stem_mean(local: LocalSetup, client: int, round_index: int) -> Tensor:
    """The batch mean that the first BatchNorm layer sees in a first step from the replica."""
    indices = local.clients[client].train_indices
    order = generator(local.config.seed, "batches", round_index, client)
    index = next(batches(len(indices), local.config.local, order)).numpy()
    x = (torch.from_numpy(local.trainer.arrays["x"][indices[index]]).float() / 16 - 0.3) / 0.4
    return functional.conv2d(x, local.views(local.replica)["stem.weight"], padding=1).mean((0, 2, 3))


ONE_STEP = [*BATCH_NORM, "local.epochs=null", "local.steps=1"]


def test_batch_statistics_are_part_of_the_update():
    local = make(*ONE_STEP, side=8)
    assert "norm.running_mean" in [layer.name for layer in local.trainer.student.exchanged_layers]
    outcome = local.train(0)
    assert "buffers" not in local.clients[0].tensors
    expected = 0.1 * stem_mean(local, 0, 0)
    torch.testing.assert_close(local.views(outcome.update)["norm.running_mean"], expected, rtol=1e-4, atol=1e-6)


def test_batch_statistics_kept_local_stay_with_their_client():
    local = make(*ONE_STEP, "server.buffers=local", side=8)
    student, start = local.trainer.student, local.replica.clone()
    assert not any("running" in layer.name for layer in student.exchanged_layers)
    expected = torch.zeros(2)
    for round_index in range(3):
        local.train(0, round_index)
        local.train(1, round_index)
        expected = 0.9 * expected + 0.1 * stem_mean(local, 0, round_index)
        flat = torch.cat([local.replica[: -len(student.local_buffers)], local.clients[0].tensors["buffers"]])
        torch.testing.assert_close(local.views(flat)["norm.running_mean"], expected, rtol=1e-4, atol=1e-6)
    assert torch.equal(local.replica, start)


def test_scores_count_right_answers_on_the_clients_own_test_samples():
    local = make(*BATCH_NORM, side=8)
    outcome = local.train(1, evaluate=True)
    client, arrays, student = local.clients[1], local.trainer.arrays, local.trainer.student
    state = student.state.clone()
    x = (torch.from_numpy(arrays["x"][client.test_indices]).float() / 16 - 0.3) / 0.4
    for model, sums in (
        (local.trainer.private.module["teacher"], outcome.teacher_sums),
        (student.module, outcome.student_sums),
    ):
        assert model.training
        model.eval()
        right = (model(x).logits.argmax(1).numpy() == arrays["y"][client.test_indices]).sum()
        assert sums.tolist() == [right, 9]
    assert torch.equal(student.state, state)
    silent = make(*BATCH_NORM, side=8).train(1)
    assert not silent.teacher_sums.any()
    assert not silent.student_sums.any()
    assert torch.equal(silent.update, outcome.update)


def test_a_teachers_score_elsewhere_is_that_of_its_client():
    local = make()
    indices = local.clients[1].test_indices
    own = local.train(1, evaluate=True).teacher_sums
    local.train(0)
    assert local.trainer.score_teacher(local.clients[1], local.trainer.arrays, indices).tolist() == own.tolist()


def test_teachers_differ_from_client_to_client_and_the_student_does_not():
    local, other = make(), make("seed=1")
    starts = []
    for client in local.clients:
        local.trainer.score_teacher(client, local.trainer.arrays, client.test_indices)
        starts.append(client.tensors["private"])
    assert not any(torch.equal(one, two) for one, two in pairwise(starts))
    assert torch.equal(make().replica, local.replica)
    assert not torch.equal(other.replica, local.replica)


@given(st.integers(1, 60), st.integers(1, 12), st.integers(1, 3), st.integers(0, 5))
def test_an_epoch_visits_every_sample_once(count: int, size: int, epochs: int, seed: int):
    visited = list(batches(count, LocalConfig(epochs=epochs, batch_size=size), np.random.default_rng(seed)))
    left_out = count % size == 1 and size > 1 and count > 1  # a last batch of a single sample
    assert len(visited) == epochs * (-(-count // size) - left_out)
    per_epoch = len(visited) // epochs
    for epoch in range(epochs):
        own = visited[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert [len(index) for index in own[:-1]] == [size] * (per_epoch - 1)
        samples = torch.cat(own).tolist()
        assert len(samples) == count - left_out
        assert len(set(samples)) == len(samples)
        assert set(samples) <= set(range(count))


@given(st.integers(1, 60), st.integers(1, 12), st.integers(1, 3))
def test_only_full_batches_in_one_order_for_the_whole_run(count: int, size: int, epochs: int):
    local = LocalConfig(epochs=epochs, batch_size=size, shuffle=False, drop_last=True)
    visited = list(batches(count, local, np.random.default_rng(0)))
    per_epoch = max(count // size, 1)
    assert len(visited) == epochs * per_epoch
    assert {len(index) for index in visited} == {min(size, count)}
    for index, first in zip(visited, visited[:per_epoch] * epochs, strict=True):
        assert torch.equal(index, first)
    config = load(overrides=["local.shuffle=false"])
    orders = [order_of(config, *place).permutation(9).tolist() for place in ((0, 0), (0, 1), (5, 0), (5, 1))]
    assert orders[:2] == orders[2:]
    assert orders[0] != orders[1]


@given(st.integers(1, 60), st.integers(1, 12), st.integers(1, 20))
def test_steps_are_the_first_batches_of_as_many_epochs_as_it_takes(count: int, size: int, steps: int):
    some = list(batches(count, LocalConfig(steps=steps, batch_size=size), np.random.default_rng(0)))
    many = list(batches(count, LocalConfig(epochs=steps, batch_size=size), np.random.default_rng(0)))
    assert len(some) == steps
    assert all(map(torch.equal, some, many))


class Numbers(ImageClassification):
    """Samples that are prepared as they are."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def prepare(self, arrays: dict[str, np.ndarray], indices: np.ndarray, device: str) -> dict[str, torch.Tensor]:
        self.asked.append(len(indices))
        return {"x": torch.from_numpy(arrays["x"][indices])}


def numbers(count: int) -> Samples:
    return Samples(Numbers(), {"x": np.arange(count)}, np.arange(count), "cpu")


@pytest.mark.parametrize("overrides", [[], ["data.augment=true"]], ids=["as they are", "augmented"])
def test_samples_prepared_by_the_batch_have_the_bits_and_layout_of_those_prepared_at_once(monkeypatch, overrides):
    config, draw = load(overrides=["local.batch_size=6", "local.epochs=2", *overrides]), np.random.default_rng(0)
    arrays = {"x": draw.integers(0, 256, (60, 3, 8, 8), dtype=np.uint8), "y": np.arange(60) % 4}
    meta = {"classes": list("abcd"), "scale": 1 / 255, "mean": [0.1, 0.5, 0.4], "std": [0.4, 0.3, 0.2]}
    task, own, found = ImageClassification(meta, arrays), np.arange(3, 60, 2), []
    for most in (2**20, 0):
        monkeypatch.setattr(batches_module, "AT_ONCE", most)
        found.append(list(Batches(config, task, Samples(task, arrays, own, "cpu"), 1, 2)))
    assert len(found[0]) == 2 * 5
    for whole, by_batch in zip(*found, strict=True):
        assert whole.keys() == by_batch.keys()
        for name, tensor in whole.items():
            assert torch.equal(tensor, by_batch[name])
            assert tensor.stride() == by_batch[name].stride()


def test_of_many_samples_no_more_than_a_batch_is_prepared(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(batches_module, "AT_ONCE", 100)
    for count, due in ((12, [1, 12]), (13, [1, 5, 5, 3])):  # 8 bytes each
        task, config = Numbers(), load(overrides=["local.batch_size=5", "local.epochs=1"])
        samples = Samples(task, {"x": np.arange(count)}, np.arange(count), "cpu")
        list(Batches(config, task, samples, 0, 0))
        assert task.asked == due


@given(st.integers(1, 40), st.integers(1, 12), st.sampled_from(["epochs", "steps"]), st.integers(1, 20), st.booleans())
def test_batches_are_counted_without_a_list_of_them(count: int, size: int, key: str, number: int, drop_last: bool):
    config = load(overrides=["local.epochs=null", f"local.{key}={number}", f"local.batch_size={size}"])
    config = config.model_copy(update={"local": config.local.model_copy(update={"drop_last": drop_last})})
    due = [index.tolist() for index in batches(count, config.local, order_of(config, 0, 0))]
    found = Batches(config, make().task, numbers(count), 0, 0)
    assert [found.is_full(step) for step in range(len(found))] == [len(index) == size for index in due]
    assert found.full == sum(len(index) == size for index in due)
    assert [batch["x"].tolist() for batch in found] == due


def test_the_order_of_samples_is_drawn_as_batches_are_requested(monkeypatch: pytest.MonkeyPatch):
    class OneOrder:
        def permutation(self, count: int) -> np.ndarray:
            assert not drawn, "an order was drawn that no batch needs yet"
            drawn.append(count)
            return np.arange(count)

    drawn: list[int] = []
    monkeypatch.setattr(batches_module, "order_of", lambda *_: OneOrder())
    config = load(overrides=["local.epochs=null", "local.steps=1000000000", "local.batch_size=2"])
    found = Batches(config, make().task, numbers(4), 0, 0)
    assert (len(found), found.full) == (10**9, 10**9)
    assert [next(found)["x"].tolist() for _ in range(2)] == [[0, 1], [2, 3]]


def test_every_epoch_has_an_order_of_its_own():
    visited = list(batches(30, LocalConfig(epochs=2, batch_size=30), np.random.default_rng(0)))
    assert not torch.equal(visited[0], visited[1])
