"""A local training against a plain implementation of equations 6 and 7: its own graphs, torch.optim over lists."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from trainer import LocalSetup, make, named

from fedkd_mpi import methods
from fedkd_mpi.client.batches import batches
from fedkd_mpi.common.random_streams import generator
from fedkd_mpi.common.torch_streams import torch_scope
from fedkd_mpi.models.flat import FlatModel

PAIRS = [(1, 0), (2, 1)]  # (teacher, student) hidden layers: from the top, every 3/2-th


class Plain:
    """The same client once more, without flat vectors, shared graphs or fused steps."""

    def __init__(self, local: LocalSetup, client: int):
        self.local, self.config, self.id = local, local.config, client
        with torch_scope(self.config.seed, "teacher", client):
            start = FlatModel(methods.build(self.config, local.task).private(), "cpu")
        self.private = leaves(named(start, start.state))
        self.student = leaves(local.views(local.replica))
        self.private_optimizer = self._optimizer(self.private, self.config.teacher.learning_rate)
        self.student_optimizer = self._optimizer(self.student, self.config.student.learning_rate)

    def _optimizer(self, tensors: dict[str, Tensor], rate: float) -> torch.optim.Optimizer:
        settings = self.config.optimizer
        if settings.name == "adam":
            return torch.optim.Adam(list(tensors.values()), rate, weight_decay=settings.weight_decay, foreach=False)
        return torch.optim.SGD(
            list(tensors.values()), rate, settings.momentum, weight_decay=settings.weight_decay, foreach=False
        )

    def start_from(self, replica: Tensor) -> None:
        with torch.no_grad():
            for name, tensor in self.local.views(replica).items():
                self.student[name].copy_(tensor)

    def train(self, round_index: int) -> tuple[float, float]:
        arrays, indices = self.local.trainer.arrays, self.local.clients[self.id].train_indices
        x = (torch.from_numpy(arrays["x"][indices]).float() / 16 - 0.3) / 0.4
        y = torch.from_numpy(arrays["y"][indices])
        order = generator(self.config.seed, "batches", round_index, self.id)
        losses = [self._step(x[index], y[index]) for index in batches(len(y), self.config.local, order)]
        return tuple(np.mean(losses, axis=0))

    def _step(self, x: Tensor, y: Tensor) -> tuple[float, float]:
        switches = self.config.distillation
        teacher_logits, teacher_hidden = mlp(self.private, "teacher.", 3, x)
        student_logits, student_hidden = mlp(self.student, "", 2, x)
        supervised = functional.nll_loss(teacher_logits, y), functional.nll_loss(student_logits, y)
        weight = 1 / max(sum(supervised).item(), switches.floor) if switches.adaptive else 1.0
        equation_6, equation_7 = supervised
        if switches.logits:
            equation_6 = equation_6 + weight * divergence(student_logits, teacher_logits)
            equation_7 = equation_7 + weight * divergence(teacher_logits, student_logits)
        hidden = torch.zeros(())
        if self.config.method.name == "fml":
            alpha, beta = (self.config.method.options().get(name, 0.5) for name in ("alpha", "beta"))
            equation_6 = alpha * supervised[0] + (1 - alpha) * divergence(student_logits, teacher_logits)
            equation_7 = beta * supervised[1] + (1 - beta) * divergence(teacher_logits, student_logits)
        elif switches.hidden:
            errors = [
                (teacher_hidden[t] - student_hidden[s] @ self.private[f"hidden_map.maps.{i}.weight"].T).square().mean()
                for i, (t, s) in enumerate(PAIRS)
            ]
            hidden = weight * sum(errors) / len(errors)
        teacher = [tensor for name, tensor in self.private.items() if name.startswith("teacher.")]
        maps = [tensor for name, tensor in self.private.items() if name.startswith("hidden_map.")]
        student = list(self.student.values())
        gradients = {
            "teacher": torch.autograd.grad(equation_6 + hidden, teacher, retain_graph=True),
            "student": torch.autograd.grad(equation_7 + hidden, student, retain_graph=True),
            "maps": torch.autograd.grad(hidden, maps) if maps else (),
        }
        for tensors, own in (
            (teacher + maps, [*gradients["teacher"], *gradients["maps"]]),
            (student, gradients["student"]),
        ):
            norm = torch.sqrt(sum(gradient.square().sum() for gradient in own))
            clip = self.config.optimizer.clip_norm
            shrink = min(1.0, clip / float(norm)) if clip else 1.0
            for tensor, gradient in zip(tensors, own, strict=True):
                tensor.grad = gradient * shrink
        self.private_optimizer.step()
        self.student_optimizer.step()
        return supervised[0].item(), supervised[1].item()


def mlp(tensors: dict[str, Tensor], prefix: str, depth: int, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return log-probabilities and hidden layers of a perceptron."""
    x, hidden = x.flatten(1), []
    for layer in range(depth):
        x = torch.relu(x @ tensors[f"{prefix}layers.{layer}.weight"].T + tensors[f"{prefix}layers.{layer}.bias"])
        hidden.append(x)
    return torch.log_softmax(x @ tensors[f"{prefix}head.weight"].T + tensors[f"{prefix}head.bias"], 1), hidden


def leaves(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}


def divergence(reference: Tensor, prediction: Tensor) -> Tensor:
    """Return KL(reference || prediction), the reference a constant, from log-probabilities."""
    reference = reference.detach()
    return (reference.exp() * (reference - prediction)).sum(1).mean()


def assert_same(own: dict[str, Tensor], truth: dict[str, Tensor]) -> None:
    assert own.keys() == truth.keys()
    for name, tensor in own.items():
        torch.testing.assert_close(
            tensor, truth[name].detach(), rtol=1e-4, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize(
    "overrides",
    [
        "",
        "optimizer.momentum=0",
        "optimizer.weight_decay=0.1",
        "optimizer.name=adam optimizer.momentum=0 teacher.learning_rate=0.01 student.learning_rate=0.02",
        "optimizer.clip_norm=0.1",
        "local.epochs=null local.steps=5",
        "local.epochs=null local.steps=1",
        "distillation.floor=5",
        "distillation.adaptive=false",
        "distillation.logits=false",
        "distillation.hidden=false",
        "distillation.logits=false distillation.hidden=false",
        "method=fml",
        'method={"name":"fml","alpha":0.25,"beta":0.875}',
    ],
)
def test_two_rounds_equal_a_plain_implementation(overrides: str):
    local = make(*overrides.split())
    plain = Plain(local, 1)
    for round_index in range(2):
        before = local.replica.clone()
        plain.start_from(before)
        outcome = local.train(1, round_index)
        losses = plain.train(round_index)
        local.replica = before + outcome.update
        assert_same(local.views(local.replica), plain.student)
        assert_same(local.private(1), plain.private)
        assert (outcome.teacher_loss, outcome.student_loss) == pytest.approx(losses, rel=1e-4)


def test_each_switch_changes_the_training():
    updates = [
        make(*overrides).train(0).update
        for overrides in (
            [],
            ["distillation.adaptive=false"],
            ["distillation.logits=false"],
            ["distillation.hidden=false"],
            ["distillation.logits=false", "distillation.hidden=false"],
            ["optimizer.clip_norm=0.1"],
            ["local.epochs=1"],
            ["precision=bfloat16"],
        )
    ]
    for i, one in enumerate(updates):
        assert not any(torch.equal(one, other) for other in updates[:i])


def test_alone_the_teacher_learns_from_its_labels():
    local = make("method=local")
    outcome = local.train(2)
    assert outcome.update is None
    assert np.isnan(outcome.student_loss)
    both = make("distillation.logits=false", "distillation.hidden=false")
    assert outcome.teacher_loss == both.train(2).teacher_loss
    assert {name: tensor.tolist() for name, tensor in local.private(2).items()} == {
        name: tensor.tolist() for name, tensor in both.private(2).items()
    }


def test_the_sum_of_gradients_times_the_learning_rate_is_the_change_that_sgd_makes():
    plain = "optimizer.momentum=0"
    delta, gradients = make(plain).train(1).update, make(plain, "exchange=gradient_sum").train(1).update
    torch.testing.assert_close(0.2 * gradients, delta, rtol=1e-4, atol=1e-6)
