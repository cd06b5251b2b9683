"""Equations 1-7 against closed forms written here in NumPy, and the faults of the public implementations."""

from __future__ import annotations

from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax
from scipy.stats import entropy
from torch import Tensor
from torch.nn import functional

from fedkd_mpi import models
from fedkd_mpi.common.torch_streams import torch_scope
from fedkd_mpi.distillation import HiddenMap, fedkd_loss, kl_divergence, squared_error
from fedkd_mpi.errors import UserError
from fedkd_mpi.models import Output

ON = {"adaptive": True, "logits": True, "hidden": True, "attention": True, "floor": 1e-6}


def kl_of_outputs(reference: Output, output: Output) -> Tensor:
    return kl_divergence(reference.logits, output.logits)


def leaf(array: np.ndarray) -> Tensor:
    return torch.tensor(array, dtype=torch.float64, requires_grad=True)


def make_map(teacher: tuple[int, ...], student: tuple[int, ...]) -> HiddenMap:
    with torch_scope(1, "hidden map"):
        return HiddenMap(teacher, student).double()


class Batch:
    """Teacher and student outputs as leaves of the graph, so that their gradients have a closed form."""

    def __init__(self, seed: int = 0, n: int = 5, classes: int = 4, scale: float = 1.0):
        draw = np.random.default_rng(seed)
        self.y = draw.integers(classes, size=n)
        self.logits = {who: draw.normal(size=(n, classes)) * scale for who in "ts"}
        self.hidden = {"t": [draw.normal(size=(n, 6)) for _ in range(4)], "s": [draw.normal(size=(n, 3)) for _ in "ab"]}
        self.attention = {who: [draw.random((n, 2, 3, 3)) for _ in range(k)] for who, k in (("t", 4), ("s", 2))}
        self.map = make_map((6,) * 4, (3,) * 2)
        self.pairs = ((1, 0), (3, 1))

    def loss(self, **switches: bool | float):
        self.out = {
            who: Output(
                leaf(self.logits[who]), *(tuple(map(leaf, part[who])) for part in (self.hidden, self.attention))
            )
            for who in "ts"
        }
        if self.map:
            self.map.zero_grad()
        teacher, student = self.out["t"], self.out["s"]
        supervised = [functional.cross_entropy(out.logits, torch.from_numpy(self.y)) for out in (teacher, student)]
        return fedkd_loss(teacher, student, *supervised, self.map, **{**ON, **switches}, distance=kl_of_outputs)

    def expected(self, adaptive: bool, logits: bool, hidden: bool, attention: bool, floor: float):
        """Return losses (6) and (7) and the gradients of (6) by the teacher's, of (7) by the student's tensors."""
        n, classes = self.logits["t"].shape
        log_p = {who: log_softmax(self.logits[who], axis=1) for who in "ts"}
        p = {who: np.exp(log_p[who]) for who in "ts"}
        supervised = {who: -log_p[who][range(n), self.y].mean() for who in "ts"}
        divisor = max(sum(supervised.values()), floor) if adaptive else 1.0
        weights = [linear.weight.detach().numpy() for linear in self.map.maps]
        residual = [
            self.hidden["t"][t] - self.hidden["s"][s] @ w.T for (t, s), w in zip(self.pairs, weights, strict=True)
        ]
        maps = [self.attention["t"][t] - self.attention["s"][s] for t, s in self.pairs]
        features = hidden * np.mean([np.mean(r**2) for r in residual]) + attention * np.mean(
            [np.mean(m**2) for m in maps]
        )
        losses, grads = [], {}
        for who, peer in ("ts", "st"):
            divergence = (p[peer] * (log_p[peer] - log_p[who])).sum(1).mean()
            losses.append(supervised[who] + (logits * divergence + features) / divisor)
            one_hot = np.eye(classes)[self.y]
            grads[who, "logits"] = (p[who] - one_hot) / n + logits * (p[who] - p[peer]) / (n * divisor)
        for k, (t, s) in enumerate(self.pairs):
            factor = hidden * 2 / (residual[k].size * len(self.pairs) * divisor)
            grads["t", "hidden", t] = factor * residual[k]
            grads["s", "hidden", s] = -factor * residual[k] @ weights[k]
            grads["W_h", k] = -factor * residual[k].T @ self.hidden["s"][s]
            factor = attention * 2 / (maps[k].size * len(self.pairs) * divisor)
            grads["t", "attention", t], grads["s", "attention", s] = factor * maps[k], -factor * maps[k]
        return losses, grads

    def gradient(self, which: tuple) -> np.ndarray:
        if which[0] == "W_h":
            tensor = self.map.maps[which[1]].weight
        else:
            tensor = getattr(self.out[which[0]], which[1])
            tensor = tensor[which[2]] if len(which) == 3 else tensor
        return np.zeros(tensor.shape) if tensor.grad is None else tensor.grad.numpy()


@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 7),
    classes=st.integers(2, 6),
    scale=st.sampled_from([0.1, 1.0, 8.0]),
    floor=st.sampled_from([1e-6, 0.5, 20.0]),
    switches=st.fixed_dictionaries({key: st.booleans() for key in ("adaptive", "logits", "hidden", "attention")}),
)
@settings(max_examples=60, deadline=None)
def test_one_backward_gives_each_network_its_own_equation(seed, n, classes, scale, floor, switches):
    batch = Batch(seed, n, classes, scale)
    total, parts = batch.loss(**switches, floor=floor)
    total.backward()
    losses, gradients = batch.expected(**switches, floor=floor)
    np.testing.assert_allclose([parts.teacher, parts.student], losses, rtol=1e-9, atol=1e-12)
    for which, gradient in gradients.items():
        np.testing.assert_allclose(batch.gradient(which), gradient, rtol=1e-8, atol=1e-13, err_msg=str(which))


def test_gradients_of_real_networks_equal_those_of_equations_6_and_7_on_graphs_of_their_own():
    draw = np.random.default_rng(3)
    x, y = torch.from_numpy(draw.normal(size=(6, 1, 6, 6))), torch.from_numpy(draw.integers(5, size=6))
    with torch_scope(0, "networks"):
        teacher = models.build("cnn", (1, 6, 6), 5, {"channels": [4], "kernel_size": 3, "hidden": [8, 7]}).double()
        student = models.build("mlp", (1, 6, 6), 5, {"hidden": [6]}).double()
    hidden_map = make_map(teacher.hidden_sizes, student.hidden_sizes)
    of_teacher, of_student = teacher(x), student(x)
    supervised = [functional.cross_entropy(out.logits, y) for out in (of_teacher, of_student)]
    fedkd_loss(of_teacher, of_student, *supervised, hidden_map, **ON, distance=kl_of_outputs)[0].backward()

    def own_loss(trained: str) -> Tensor:
        outputs = {"t": teacher(x), "s": student(x)}
        peer = outputs["s" if trained == "t" else "t"]
        p_own, p_peer = outputs[trained].logits.softmax(1), peer.logits.softmax(1).detach()
        top = {who: out.hidden[-1] if who == trained else out.hidden[-1].detach() for who, out in outputs.items()}
        mse = ((top["t"] - top["s"] @ hidden_map.maps[0].weight.T) ** 2).mean()
        divisor = sum(-out.logits.softmax(1)[range(6), y].log().mean().detach() for out in outputs.values())
        divergence = (p_peer * (p_peer / p_own).log()).sum() / 6
        return -p_own[range(6), y].log().mean() + (divergence + mse) / divisor

    for trained, network in (("t", teacher), ("s", student), ("t", hidden_map)):
        parameters = list(network.parameters())
        separate = torch.autograd.grad(own_loss(trained), parameters)
        assert parameters
        for parameter, gradient in zip(parameters, separate, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-12)


class TestFaultSixOfThePublicImplementations:
    def test_kl_divides_by_samples_and_not_by_classes_too(self):
        batch = Batch(n=5, classes=4)
        truth = entropy(softmax(batch.logits["t"], 1), softmax(batch.logits["s"], 1), axis=1).mean()
        reference, prediction = (torch.from_numpy(batch.logits[who]) for who in "ts")
        assert kl_divergence(reference, prediction).item() == pytest.approx(truth, rel=1e-12)
        with pytest.warns(UserWarning, match="reduction"):
            faulty = torch.nn.KLDivLoss()(functional.log_softmax(prediction, 1), functional.softmax(reference, 1))
        assert faulty.item() == pytest.approx(truth / 4, rel=1e-12)

    def test_kl_has_the_peer_as_reference(self):
        batch = Batch(scale=3.0)
        p = {who: softmax(batch.logits[who], 1) for who in "ts"}
        forward, backward = entropy(p["s"], p["t"], axis=1).mean(), entropy(p["t"], p["s"], axis=1).mean()
        assert forward != pytest.approx(backward, rel=0.01)
        _, parts = batch.loss()
        assert parts.distillation_teacher.item() == pytest.approx(forward, rel=1e-12)  # equation 3
        assert parts.distillation_student.item() == pytest.approx(backward, rel=1e-12)  # equation 4

    def test_hidden_term_counts_once_for_each_network(self):
        batch = Batch()
        total, _ = batch.loss(adaptive=False, logits=False, attention=False)
        total.backward()
        teacher = torch.tensor(batch.hidden["t"][3], requires_grad=True)
        mapped = torch.from_numpy(batch.hidden["s"][1]) @ batch.map.maps[1].weight.detach().T
        (once,) = torch.autograd.grad(functional.mse_loss(teacher, mapped) / 2, teacher)
        torch.testing.assert_close(batch.out["t"].hidden[3].grad, once, rtol=1e-12, atol=0)

    @pytest.mark.parametrize("distance", [kl_divergence, squared_error])
    def test_the_reference_gets_no_gradient(self, distance):
        reference, prediction = (leaf(Batch().logits[who]) for who in "ts")
        distance(reference, prediction).backward()
        assert reference.grad is None
        assert prediction.grad.abs().max() > 0.01

    def test_the_denominator_gets_no_gradient(self):
        out = Batch()
        out.loss()
        supervised = leaf(np.array(0.7)), leaf(np.array(0.9))
        fedkd_loss(out.out["t"], out.out["s"], *supervised, out.map, **ON, distance=kl_of_outputs)[0].backward()
        assert [loss.grad.item() for loss in supervised] == [1.0, 1.0]

    def test_w_h_changes_the_loss_and_is_trained_by_it(self):
        batch = Batch()
        before, _ = batch.loss()
        before.backward()
        for linear in batch.map.maps:
            assert linear.weight.grad.abs().min() > 0
        with torch.no_grad():
            for linear in batch.map.maps:
                linear.weight -= 0.01 * linear.weight.grad
        assert batch.loss()[0].item() < before.item()


def test_floor_bounds_the_weight_of_distillation():
    batch = Batch()
    batch.loss()
    nothing_left = torch.zeros((), dtype=torch.float64)
    call = partial(fedkd_loss, batch.out["t"], batch.out["s"], nothing_left, nothing_left, batch.map)
    total, parts = call(**{**ON, "floor": 0.25}, distance=kl_of_outputs)
    terms = parts.distillation_teacher + parts.distillation_student + parts.features
    assert parts.denominator.item() == 0.25
    assert total.item() == pytest.approx(terms.item() / 0.25)


def test_a_loss_that_is_not_finite_stays_so_under_the_floor():
    batch = Batch()
    batch.logits["t"][0, 0] = np.nan
    total, _ = batch.loss(floor=0.5)
    assert torch.isnan(total)


def test_everything_off_is_plain_training():
    batch = Batch()
    total, parts = batch.loss(logits=False, hidden=False, attention=False)
    assert total.item() == pytest.approx((parts.supervised_teacher + parts.supervised_student).item())
    assert parts.teacher == parts.supervised_teacher
    assert parts.student == parts.supervised_student


def test_without_the_hidden_term_no_map_is_needed():
    batch = Batch()
    with_map, _ = batch.loss(hidden=False)
    batch.map = None
    assert batch.loss(hidden=False)[0] == with_map


@given(scale=st.sampled_from([1e-3, 1.0, 1e4]), seed=st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_kl_is_finite_never_negative_and_zero_for_equal_outputs(scale, seed):
    logits = Batch(seed, scale=scale).logits
    reference, prediction = (torch.from_numpy(logits[who]) for who in "ts")
    assert torch.isfinite(kl_divergence(reference, prediction))
    assert kl_divergence(reference, prediction).item() >= -1e-15
    assert kl_divergence(reference, reference.clone()).item() == 0
    shifted = kl_divergence(reference + 3, prediction - 5).item()
    assert shifted == pytest.approx(kl_divergence(reference, prediction).item(), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("distance", [kl_divergence, squared_error])
def test_the_mean_is_over_the_tokens_of_the_mask(distance):
    draw = np.random.default_rng(2)
    reference, prediction = torch.from_numpy(draw.normal(size=(2, 3, 7, 4)))
    mask = torch.from_numpy(draw.random((3, 7)) < 0.4)
    rows = [distance(reference[i, j], prediction[i, j]) for i, j in product(range(3), range(7)) if mask[i, j]]
    assert 3 < len(rows) < 21
    assert distance(reference, prediction, mask).item() == pytest.approx(torch.stack(rows).mean().item())


@pytest.mark.parametrize("distance", [kl_divergence, squared_error])
def test_a_batch_without_labelled_tokens_gives_zero_and_no_nan(distance):
    reference, prediction = torch.ones(2, 3, 4), torch.zeros(2, 3, 4, requires_grad=True)
    value = distance(reference, prediction, torch.zeros(2, 3, dtype=torch.bool))
    value.backward()
    assert value.item() == 0
    assert prediction.grad.abs().max() == 0


@pytest.mark.parametrize("distance", [kl_divergence, squared_error])
def test_outputs_of_different_shape_are_refused_and_not_broadcast(distance):
    with pytest.raises(ValueError, match="differ in shape"):
        distance(torch.zeros(4, 3), torch.zeros(4, 1))


def test_squared_error_is_the_mean_over_all_elements():
    draw = np.random.default_rng(5)
    reference, prediction = draw.normal(size=(2, 3, 1, 4, 4))
    value = squared_error(torch.from_numpy(reference), torch.from_numpy(prediction))
    assert value.item() == pytest.approx(np.mean((reference - prediction) ** 2))


def test_attention_of_different_head_counts_is_averaged_over_heads():
    batch = Batch()
    batch.attention["t"] = [np.random.default_rng(k).random((5, 6, 3, 3)) for k in range(4)]
    _, parts = batch.loss(hidden=False)
    maps = [batch.attention["t"][t].mean(1) - batch.attention["s"][s].mean(1) for t, s in batch.pairs]
    assert parts.features.item() == pytest.approx(np.mean([np.mean(m**2) for m in maps]))


def test_attention_counts_only_where_the_models_have_it():
    batch = Batch()
    batch.attention = {"t": [], "s": []}
    assert batch.loss(hidden=False)[1].features.item() == 0
    batch.attention["t"] = [np.zeros((5, 2, 3, 3))]
    with pytest.raises(UserError, match=r"distillation\.attention: only the teacher has attention"):
        batch.loss()
    assert torch.isfinite(batch.loss(attention=False)[0])
