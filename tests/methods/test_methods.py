"""The averaging methods against their papers' update rules, written out in NumPy on least squares."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from simulate import play
from torch import Tensor, nn

from fedkd_mpi import methods
from fedkd_mpi.client.client import Client
from fedkd_mpi.client.trainer import LocalTrainer, initial_student
from fedkd_mpi.codecs import factory
from fedkd_mpi.config.load import load
from fedkd_mpi.config.schema import Config
from fedkd_mpi.errors import UserError
from fedkd_mpi.models.output import Output
from fedkd_mpi.simulation.server import apply

SAMPLES, STEPS, RATE = (8, 12, 20), 5, 0.05
RNG = np.random.default_rng(0)
X = RNG.normal(size=(sum(SAMPLES), 3)).astype(np.float32)
Y = (X @ [1.0, -2.0, 0.5] + np.repeat([0.0, 3.0, -4.0], SAMPLES)).astype(np.float32)  # clients that disagree
SHARES = np.split(np.arange(len(X)), np.cumsum(SAMPLES)[:-1])


class Line(nn.Module):
    hidden_sizes = ()

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[0.3, -0.2, 0.1]]))
        self.bias = nn.Parameter(torch.tensor([0.5]))

    def forward(self, x: Tensor) -> Output:
        return Output(x @ self.weight.T + self.bias, ())


class LeastSquares:
    sums, metrics, input_shape = 1, ("error",), (3,)

    def prepare(self, arrays: dict[str, np.ndarray], indices: np.ndarray, device: str) -> dict[str, Tensor]:
        return {name: torch.from_numpy(array[indices]) for name, array in arrays.items()}

    def predict(self, model: nn.Module, batch: dict[str, Tensor]) -> Output:
        return model(batch["x"])

    def loss(self, output: Output, batch: dict[str, Tensor]) -> Tensor:
        return (output.logits[:, 0] - batch["y"]).square().mean() / 2


def configure(method: str, *overrides: str) -> Config:
    rate = f"student.learning_rate={RATE}"
    common = [
        "num_clients=3",
        "optimizer.momentum=0",
        "optimizer.clip_norm=null",
        "local.epochs=null",
        f"local.steps={STEPS}",
        "device=cpu",
        rate,
    ]
    return load(overrides=[f"method={method}", *common, "local.batch_size=99", "compression.codec=none", *overrides])


def federate(monkeypatch: pytest.MonkeyPatch, config: Config, cohorts: list[list[int]]) -> np.ndarray:
    """Run the rounds, clients and plain mean; return (w, b) of the global model after each."""
    monkeypatch.setattr(methods, "make_model", lambda config, task, role: Line())
    task = LeastSquares()
    method = methods.build(config, task)
    student = initial_student(config, method, "cpu")
    local = LocalTrainer(config, task, method, student, {"x": X, "y": Y}, "cpu")
    replica = student.state.clone()
    clients = [Client(index, share, share) for index, share in enumerate(SHARES)]
    trace = []
    for number, cohort in enumerate(cohorts):
        updates = [local.train(clients[client], number, replica, evaluate=False).update for client in cohort]
        mean = torch.stack(updates).mean(0)
        moves, statistics = student.exchanged_parts(mean)
        apply(student, replica, moves, config.server, {}, statistics)
        trace.append(np.concatenate([view.numpy().ravel() for view in student.views(replica)[:2]]))
    return np.array(trace)


START = np.array([0.3, -0.2, 0.1, 0.5])
A = np.column_stack([X, np.ones(len(X))]).astype(float)


def gradient(point: np.ndarray, client: int) -> np.ndarray:
    rows = SHARES[client]
    return A[rows].T @ (A[rows] @ point - Y[rows]) / len(rows)


@pytest.mark.parametrize(("method", "mu"), [("fedavg", 0.0), ("fedprox", 0.7)])
def test_fedavg_and_fedprox_average_what_the_papers_say(monkeypatch, method, mu):
    cohorts = [[0, 1, 2], [0, 2], [1], [0, 1, 2]]
    found = federate(monkeypatch, configure(method, f"averaging.proximal={mu}"), cohorts)
    point = START
    for after, cohort in zip(found, cohorts, strict=True):
        ends = []
        for client in cohort:
            own = point
            for _ in range(STEPS):
                own = own - RATE * (gradient(own, client) + mu * (own - point))
            ends.append(own)
        point = np.mean(ends, axis=0)
        np.testing.assert_allclose(after, point, atol=1e-5)


@pytest.mark.parametrize("server_rate", [1.0, 0.5])
def test_scaffold_is_algorithm_1_with_option_2(monkeypatch, server_rate):
    cohorts = [[0, 1], [1, 2], [0, 2], [0, 1]]
    config = configure("scaffold", "cohort_size=2", f"server.learning_rate={server_rate}")
    found = federate(monkeypatch, config, cohorts)
    point, control, own_control = START, np.zeros(4), np.zeros((3, 4))
    for after, cohort in zip(found, cohorts, strict=True):
        moved, changed = [], []
        for client in cohort:
            own = point
            for _ in range(STEPS):
                own = own - RATE * (gradient(own, client) - own_control[client] + control)
            new = own_control[client] - control + (point - own) / (STEPS * RATE)
            moved.append(own - point)
            changed.append(new - own_control[client])
            own_control[client] = new
        point = point + server_rate * np.mean(moved, axis=0)
        control = control + np.mean(changed, axis=0) * len(cohort) / 3
        np.testing.assert_allclose(after, point, atol=2e-5)


def test_scaffold_reaches_the_optimum_that_fedavg_drifts_from(monkeypatch):
    hessian = np.mean([A[rows].T @ A[rows] / len(rows) for rows in SHARES], axis=0)
    right = np.mean([A[rows].T @ Y[rows] / len(rows) for rows in SHARES], axis=0)
    optimum = np.linalg.solve(hessian, right)
    every = [[0, 1, 2]] * 150
    far = {
        method: np.abs(federate(monkeypatch, configure(method), every)[-1] - optimum).max()
        for method in ("fedavg", "scaffold")
    }
    assert far["scaffold"] < 1e-3 < 1e-2 < far["fedavg"]


def test_scaffolds_control_variates_travel_as_often_as_the_parameters(monkeypatch):
    monkeypatch.setattr(methods, "make_model", lambda config, task, role: Line())
    config = configure("scaffold")
    layers = initial_student(config, methods.build(config, LeastSquares()), "cpu").exchanged_layers
    numbers = [layer.numel for layer in layers]
    assert sum(numbers) == 2 * 4
    assert [layer.compressible for layer in layers] == [True, False, False, False]


def test_averaging_network_chooses_architecture_and_learning_rate():
    from trainer import make

    big, small = make("method=fedavg", "averaging.network=teacher"), make("method=fedavg")
    shapes = [next(iter(local.views(local.replica).values())).shape for local in (big, small)]
    rates = [local.trainer.student_optimizer.learning_rate for local in (big, small)]
    assert ([shape[0] for shape in shapes], rates) == ([7, 6], [0.1, 0.2])


def test_methods_without_a_teacher_have_no_teacher_score_and_keep_nothing_private():
    from trainer import make

    local = make("method=fedavg")
    outcome = local.train(0, evaluate=True)
    assert (outcome.teacher_sums == 0).all()
    assert outcome.student_sums[1] == 9
    assert np.isnan(outcome.teacher_loss)
    assert local.clients[0].tensors["private"].numel() == 0


def test_feddropout_trains_and_sends_the_sub_network_of_the_kept_units():
    from trainer import make

    overrides = ["method=feddropout", "averaging.keep=0.5", "local.epochs=null", "local.steps=1", "local.batch_size=99"]
    local = make(
        *overrides,
        "compression.codec=submatrix",
        "student={name: mlp, hidden: [32, 16], activation: tanh, learning_rate: 0.2}",
    )
    before = {name: view.clone().requires_grad_() for name, view in local.views(local.replica).items()}
    update = local.train(0, round_index=3).update
    change = local.views(update)
    kept = [torch.nonzero(change[f"layers.{layer}.bias"]).flatten() for layer in (0, 1)]
    assert [len(units) for units in kept] == [16, 8]
    # The same step on the small network of the kept units, cut out by hand, its hidden outputs doubled.
    client = local.clients[0]
    batch = local.task.prepare(local.trainer.arrays, client.train_indices, "cpu")
    first, second = (before["layers.0.weight"][kept[0]], before["layers.1.weight"][kept[1]][:, kept[0]])
    x = torch.tanh(2 * (batch["x"].flatten(1) @ first.T + before["layers.0.bias"][kept[0]]))
    x = torch.tanh(2 * (x @ second.T + before["layers.1.bias"][kept[1]]))
    loss = nn.functional.cross_entropy(x @ before["head.weight"][:, kept[1]].T + before["head.bias"], batch["y"])
    loss.backward()
    for name, tensor in before.items():
        torch.testing.assert_close(change[name], -0.2 * tensor.grad, atol=1e-6, rtol=1e-4)
    student = local.trainer.student
    codec = factory.build(local.config.compression, student.exchanged_layers)
    records = codec.encode(student.exchanged(update), 0.95, {}, np.random.default_rng(0))
    numbers = [(16, 9), (16, 1), (8, 16), (8, 1), (4, 8), (4, 1)]
    maps = [4 + 2, 4 + 1, 2 + 4, 2 + 1, 1 + 2, 0]  # bytes for rows and columns; the head's bias goes raw
    sizes = [4 * rows * columns + bits for (rows, columns), bits in zip(numbers, maps, strict=True)]
    assert [record.data.size for record in records] == sizes
    for sent, decoded in zip(student.exchanged(update), codec.decode(records, "cpu"), strict=True):
        assert torch.equal(sent, decoded)


def test_feddropout_draws_the_same_part_for_all_clients_of_a_round_and_another_in_the_next():
    from trainer import make

    local = make("method=feddropout", "averaging.keep=0.5", "student={name: mlp, hidden: [64], learning_rate: 0.2}")
    moved = [local.views(local.train(c, r).update)["layers.0.bias"] != 0 for c, r in ((0, 0), (1, 0), (0, 1))]
    assert (moved[0] & moved[1]).sum() > 24
    assert (moved[0] | moved[1]).sum() == 32
    assert (moved[2] & ~moved[0]).any()


@pytest.mark.parametrize(
    ("overrides", "word"),
    [
        (["method=centralized"], "num_clients=1"),
        (["method=scaffold", "server.weighting=samples"], "weighting=uniform"),
        (["method=scaffold", "server.buffers=local"], "buffers=average"),
        (["method=scaffold", "exchange=gradient_sum"], "exchange=delta"),
        (["method=scaffold", "server.optimizer=fedadam", "server.learning_rate=0.1"], "optimizer=sgd"),
        (["method=fedavgg"], "method"),
    ],
)
def test_what_a_method_cannot_do_is_refused(overrides, word):
    with pytest.raises(UserError, match=word):
        load(overrides=overrides)


class Chain(nn.Sequential):
    """Calls all of its children in turn."""

    def __init__(self, input_shape: tuple[int, ...], num_classes: int):
        super().__init__(nn.Flatten(), nn.Linear(math.prod(input_shape), num_classes))
        self.hidden_sizes = ()

    def forward(self, x: torch.Tensor) -> Output:
        return Output(super().forward(x))


def test_scaffold_takes_a_network_that_calls_all_of_its_children():
    how = ["method=scaffold", "averaging.network=student", "compression.codec=none", "rounds=2", "num_clients=2"]
    _, log = play(*how, "student={name: test_methods:Chain, learning_rate: 0.1}", "optimizer.momentum=0")
    assert log["rounds"]["global_student_accuracy"][-1] > 0.3
