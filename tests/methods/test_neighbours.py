"""LG-FedAvg, FedProto and FedDistill against their papers' rules, written out with torch.optim and dictionaries."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from simulate import play, start
from torch import Tensor
from torch.nn import functional
from trainer import named

from fedkd_mpi import methods
from fedkd_mpi.client.batches import batches
from fedkd_mpi.common.random_streams import generator
from fedkd_mpi.common.torch_streams import torch_scope
from fedkd_mpi.config.load import load
from fedkd_mpi.errors import UserError
from fedkd_mpi.methods import make_teacher
from fedkd_mpi.models.flat import FlatModel
from fedkd_mpi.models.output import Output
from fedkd_mpi.simulation.state import Simulation
from fedkd_mpi.tasks.image_classification import ImageClassification

RATES, HEAD = (0.1, 0.2), ("teacher.head.weight", "teacher.head.bias")
TEACHERS = (
    f"teachers=[{{name: mlp, hidden: [12, 8], learning_rate: {RATES[0]}}},"
    f" {{name: mlp, hidden: [8], learning_rate: {RATES[1]}}}]"
)
# Four clients of three classes each, two per round: of most classes no client of a round has any.
RUN = [
    *("num_clients=4", "cohort_size=2", "rounds=4", "teacher=null", TEACHERS, "compression.codec=none"),
    *("partition={kind: pathological, classes_per_client: 3}", "optimizer.momentum=0", "optimizer.clip_norm=null"),
    "local.batch_size=32",
]
Forward = Callable[[dict[str, Tensor], Tensor], tuple[Tensor, Tensor]]


def perceptron(tensors: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits and the last hidden layer of a teacher."""
    x, depth = x.flatten(1), sum(".layers." in name for name in tensors) // 2
    for layer in range(depth):
        x = torch.relu(x @ tensors[f"teacher.layers.{layer}.weight"].T + tensors[f"teacher.layers.{layer}.bias"])
    return x @ tensors[HEAD[0]].T + tensors[HEAD[1]], x


class Reference:
    """The clients of a run once more: their teachers as lists of tensors."""

    def __init__(self, run: Simulation):
        self.run, self.teachers = run, {}
        for client in range(run.config.num_clients):
            with torch_scope(run.config.seed, "teacher", client):
                module = methods.build(run.config, run.task).private(run.config.architecture(client))
            flat = FlatModel(module, "cpu")
            self.teachers[client] = {n: t.clone().requires_grad_() for n, t in named(flat, flat.state).items()}

    def train(self, client: int, number: int, term: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        """Train a teacher; `term` gives the second term of the loss of logits, features and classes."""
        run, tensors = self.run, self.teachers[client]
        examples = run.task.prepare(run.data.train, run.data.clients[client][0], "cpu")
        rates = [RATES[0] if name in HEAD and self.common else RATES[client % 2] for name in tensors]
        groups = [{"params": [t], "lr": rate} for t, rate in zip(tensors.values(), rates, strict=True)]
        optimizer = torch.optim.SGD(groups)
        order = generator(run.config.seed, "batches", number, client)
        for index in batches(len(examples["y"]), run.config.local, order):
            logits, features = perceptron(tensors, examples["x"][index])
            y = examples["y"][index]
            loss = functional.cross_entropy(logits, y) + term(logits, features, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    common = False

    def assert_equal(self) -> None:
        """Check the teachers that the run has left."""
        for client in self.run.clients.values():
            if client.tensors:
                network = self.run.trainer.networks_for(client.id)
                for name, tensor in named(network, client.tensors["private"]).items():
                    torch.testing.assert_close(tensor, self.teachers[client.id][name].detach(), atol=2e-5, rtol=2e-4)


def vector_of(method: str, logits: Tensor, features: Tensor) -> Tensor:
    return features if method == "fedproto" else logits


@pytest.mark.parametrize("weighting", ["samples", "clients"])
@pytest.mark.parametrize("method", ["fedproto", "feddistill"])
def test_means_by_class_are_drawn_from_dictionaries_of_classes(method: str, weighting: str):
    run, log = play(*RUN, f"method={{name: {method}, strength: 0.7, weighting: {weighting}}}")
    plain, known, drawn = Reference(run), {}, set()
    for number in range(4):
        vectors: dict[int, dict[int, list[Tensor]]] = {}
        for client in run.plan.cohort(number):
            own = vectors.setdefault(client, defaultdict(list))

            def term(logits: Tensor, features: Tensor, y: Tensor, own: Any = own, known: Any = known) -> Tensor:
                vector = vector_of(method, logits, features)
                for row, label in zip(vector.detach(), y.tolist(), strict=True):
                    own[label].append(row)
                drawn.update(label for label in y.tolist() if label in known)
                target = [known.get(label, row.detach()) for row, label in zip(vector, y.tolist(), strict=True)]
                return 0.7 * functional.mse_loss(vector, torch.stack(target))

            plain.train(client, number, term)
        known = {}
        for label in {label for own in vectors.values() for label in own}:
            means = [(torch.stack(own[label]).mean(0), len(own[label])) for own in vectors.values() if label in own]
            weights = [count if weighting == "samples" else 1 for _, count in means]
            known[label] = sum(mean * w for (mean, _), w in zip(means, weights, strict=True)) / sum(weights)
    plain.assert_equal()
    assert drawn  # the second term was there
    assert 0 < len(known) < 10  # and classes that no client of the last round has
    table = dict(zip(("sums", "weights"), run.exchange.student.exchanged(run.exchange.replica), strict=True))
    for label in range(10):
        assert (table["weights"][label] > 0) == (label in known)
        if label in known:
            torch.testing.assert_close(
                table["sums"][label] / table["weights"][label], known[label], atol=1e-4, rtol=1e-3
            )
    assert np.isnan(log["rounds"]["global_student_accuracy"]).all()
    assert np.isnan(log["rounds"]["student_accuracy"]).all()
    assert not np.isnan(log["rounds"]["teacher_accuracy"]).any()


def test_a_client_sends_the_rows_of_its_own_classes():
    run, log = play(*RUN, "method=feddistill")
    held = [len(set(run.data.train["y"][train].tolist())) for train, _ in run.data.clients]
    for client, (sums, weights) in zip(log["uplink"]["client"], log["uplink"]["layer_bytes"], strict=True):
        rows = held[client]
        assert rows < 10
        assert sums == 2 + 2 + 4 * rows * 10  # bits of 10 rows and 10 columns, then float32
        assert weights == min(2 + 1 + 4 * rows, 40)
    assert log["rounds"]["uplink_bytes"].tolist() == [
        log["uplink"]["bytes"][log["uplink"]["round"] == number].sum() for number in range(4)
    ]


@pytest.mark.parametrize("weighting", ["uniform", "samples"])
def test_lgfedavg_averages_the_heads_of_different_teachers(weighting: str):
    run, log = play(*RUN, "method=lgfedavg", f"server.weighting={weighting}")
    plain = Reference(run)
    plain.common = True  # the head has the learning rate of the first teacher
    with torch_scope(run.config.seed, "student"):
        start_head = make_teacher(run.config, run.task, 0).head
    head = [start_head.weight.detach(), start_head.bias.detach()]
    for number in range(4):
        cohort, ends = run.plan.cohort(number), []
        for client in cohort:
            own = plain.teachers[client]
            for name, tensor in zip(HEAD, head, strict=True):
                own[name].data.copy_(tensor)
            plain.train(client, number, lambda *_: torch.zeros(()))
            ends.append([own[name].detach().clone() for name in HEAD])
        weights = [len(run.data.clients[client][0]) if weighting == "samples" else 1 for client in cohort]
        head = [
            sum(t * w for t, w in zip(part, weights, strict=True)) / sum(weights) for part in zip(*ends, strict=True)
        ]
    plain.assert_equal()
    for found, due in zip(run.exchange.student.exchanged(run.exchange.replica), head, strict=True):
        torch.testing.assert_close(found, due, atol=2e-5, rtol=2e-4)
    assert log["layers"]["numel"].tolist() == [80, 10]
    assert np.isnan(log["rounds"]["global_student_accuracy"]).all()


def test_lgfedavg_shares_the_layers_that_are_named():
    run, log = play("num_clients=2", "method={name: lgfedavg, layers: [layers.1, head]}")
    assert [name.split(".")[0] for name in log["layers"]["name"]] == ["layers_1", "layers_1", "head", "head"]
    client = run.clients[1]
    network = run.trainer.networks_for(1)
    before = named(network, client.tensors["private"])
    assert all(f"teacher.{name}" in before for name in ("layers.0.weight", "layers.1.weight"))


REFUSED = {
    "ner": (["method=fedproto", "task=ner"], "samples of task=ner have no class"),
    "denoising": (["method=feddistill", "task=denoising"], "samples of task=denoising have no class"),
    "news": (["method=fedproto", "task=news"], "samples of task=news have no class"),
    "weights": (["method=fedproto", "server.weighting=samples"], "it needs server.weighting=uniform"),
    "budget": (["method=feddistill", "compression.byte_budget=900"], "it needs compression.byte_budget=null"),
    "stack": (["method=feddistill", "stack=2"], "it needs stack=1"),
    "student": (["method=lgfedavg", "init.student=/x"], "init.student: method=lgfedavg has no student"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_meaning_is_refused(case: str):
    overrides, words = REFUSED[case]
    with pytest.raises(UserError, match=words):
        load(overrides=overrides)


WIDTHS = "teachers=[{name: mlp, hidden: [9], learning_rate: 0.1}, {name: mlp, hidden: [5], learning_rate: 0.1}]"


class Renamed(ImageClassification):
    """Its batches call the classes otherwise."""

    def prepare(self, *arguments: Any) -> dict[str, Tensor]:
        batch = super().prepare(*arguments)
        return {"x": batch["x"], "label": batch["y"]}

    def loss(self, output: Output, batch: dict[str, Tensor]) -> Tensor:
        return functional.cross_entropy(output.logits, batch["label"])

    def score(self, output: Output, batch: dict[str, Tensor]) -> np.ndarray:
        return super().score(output, {"y": batch["label"]})


UNFIT = {
    "widths": (
        ["method=fedproto", "teacher=null", WIDTHS],
        "one width in all teachers, not teachers.0 9, teachers.1 5",
    ),
    "heads": (["method=lgfedavg", "teacher=null", WIDTHS], "10x9 and 10 in teachers.0 and 10x5 and 10 in teachers.1"),
    "layer": (["method={name: lgfedavg, layers: [hed]}"], "names hed, which is no layer.*did you mean head"),
    "stack": (["method=lgfedavg", "stack=2"], "trains clients one at a time"),
    "strength": (["method={name: fedproto, strength: -1}"], "method.strength=-1"),
    "no features": (
        ["method=fedproto", "teacher={name: plain_models:Small, learning_rate: 0.1}"],
        "teacher: the network has no hidden features",
    ),
    "no class": (
        ["method=fedproto", "task=test_neighbours:Renamed"],
        "method=fedproto needs one class per sample",
    ),
}


@pytest.mark.parametrize("case", UNFIT)
def test_what_does_not_fit_is_refused_before_the_first_round(case: str):
    overrides, words = UNFIT[case]
    with pytest.raises(UserError, match=words):
        start("num_clients=2", *overrides)
