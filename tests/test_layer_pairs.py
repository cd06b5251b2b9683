"""Which layers of teacher and student are compared, and W_h between them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedkd_mpi.common.torch_streams import torch_scope
from fedkd_mpi.distillation import HiddenMap, pair_layers
from fedkd_mpi.errors import UserError


def make_map(teacher: tuple[int, ...], student: tuple[int, ...], **options: bool) -> HiddenMap:
    with torch_scope(1, "hidden map"):
        return HiddenMap(teacher, student, **options).double()


@pytest.mark.parametrize(
    ("teacher", "student", "pairs"),
    [
        (12, 4, [(2, 0), (5, 1), (8, 2), (11, 3)]),
        (12, 2, [(5, 0), (11, 1)]),
        (3, 3, [(0, 0), (1, 1), (2, 2)]),
        (5, 2, [(2, 0), (4, 1)]),
        (2, 5, [(0, 2), (1, 4)]),
        (3, 1, [(2, 0)]),
    ],
)
def test_layers_are_paired_from_the_top(teacher, student, pairs):
    assert pair_layers(teacher, student) == pairs


@given(st.integers(1, 60), st.integers(1, 60))
def test_every_layer_of_the_shallower_network_has_one_partner(teacher, student):
    pairs = pair_layers(teacher, student)
    assert len(pairs) == min(teacher, student)
    assert pairs[-1] == (teacher - 1, student - 1)
    for side, depth in zip(zip(*pairs, strict=True), (teacher, student), strict=True):
        assert sorted(set(side)) == list(side)
        assert side[0] >= 0
        assert max(np.diff(side), default=1) <= -(-depth // len(pairs))  # no stretch of layers is left out


def test_hidden_map_has_a_matrix_per_pair_without_bias():
    assert [tuple(p.shape) for p in make_map((32, 64, 512), (8, 16)).parameters()] == [(64, 8), (512, 16)]


def test_shared_map_is_one_matrix_used_by_all_pairs():
    hidden_map = make_map((6,) * 4, (3,) * 2, shared=True)
    assert [tuple(p.shape) for p in hidden_map.parameters()] == [(6, 3)]
    draw = np.random.default_rng(0)
    teacher, student = draw.normal(size=(4, 5, 6)), draw.normal(size=(2, 5, 3))
    weight = hidden_map.maps[0].weight.detach().numpy()
    errors = [((teacher[t] - student[s] @ weight.T) ** 2).mean() for t, s in ((1, 0), (3, 1))]
    value = hidden_map(torch.from_numpy(teacher).unbind(), torch.from_numpy(student).unbind())
    assert value.item() == pytest.approx(np.mean(errors))


def test_shared_map_of_unequal_layers_is_refused():
    with pytest.raises(UserError, match=r"distillation\.shared_map.*\(3, 6\), \(3, 7\)"):
        HiddenMap((6, 7), (3, 3), shared=True)


@pytest.mark.parametrize(("teacher", "student", "who"), [((), (3,), "teacher"), ((3,), (), "student")])
def test_networks_without_hidden_layers_are_named(teacher, student, who):
    with pytest.raises(UserError, match=rf"distillation\.hidden: the {who} has no hidden layers"):
        HiddenMap(teacher, student)


def test_w_h_learns_a_linear_relation_between_student_and_teacher():
    draw = np.random.default_rng(0)
    student = torch.from_numpy(draw.normal(size=(64, 3)))
    relation = torch.from_numpy(draw.normal(size=(5, 3)))
    hidden_map = make_map((5,), (3,))
    optimizer = torch.optim.SGD(hidden_map.parameters(), 0.5)
    for _ in range(200):
        optimizer.zero_grad()
        hidden_map([student @ relation.T], [student]).backward()
        optimizer.step()
    torch.testing.assert_close(hidden_map.maps[0].weight.detach(), relation, rtol=0, atol=1e-6)
