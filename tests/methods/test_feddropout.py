"""Federated dropout of networks of a user's own: the network of the kept units, or a refusal by name."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from fedkd_mpi.errors import UserError
from fedkd_mpi.methods.hidden_units import kept_parameters, sources


class Between(nn.Module):
    """Two layers with a function between them."""

    def __init__(self, between: Callable[[Tensor], Tensor], inner: int = 6, read: int = 6):
        super().__init__()
        self.first, self.head, self.between = nn.Linear(5, inner), nn.Linear(read, 3), between

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.between(self.first(x)))


class Pictures(nn.Module):
    """Grouped convolutions, a sum with what was before them, pooling and a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.c, self.head = nn.Linear(4, 3), nn.Linear(4 * 4 + 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        before = F.relu(self.a(x))
        after = F.max_pool2d(before + F.gelu(self.b(before)), 2)
        return self.head(torch.cat([after.flatten(1), torch.tanh(self.c(after.mean((2, 3))))], dim=1))


def read_by(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)}
    model.eval()
    with torch.no_grad():
        return sources(layers, [name for name in layers if name != "head"], lambda other: model(x + other))


RIGHT = {
    "relu": F.relu,
    "leaky": F.leaky_relu,
    "silu": F.silu,
    "relu6": F.relu6,
    "dropout": lambda x: F.dropout(x, 0.5),
    "square": lambda x: x.square(),
    "reversed": lambda x: x.flip(1),
    "negative": lambda x: F.relu(-x),
    "over the batch": lambda x: F.batch_norm(x, None, None, training=True),
}
WRONG = {
    "layer_norm": lambda x: F.layer_norm(x, (6,)),
    "group_norm": lambda x: F.group_norm(x, 3),
    "local_response_norm": lambda x: F.local_response_norm(x[:, :, None], 3)[:, :, 0],
    "normalize": F.normalize,
    "rms by hand": lambda x: x / x.square().mean(1, keepdim=True).sqrt(),
    "centred": lambda x: x - x.mean(1, keepdim=True),
    "softmax": lambda x: x.softmax(1),
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "cosine": torch.cos,
    "shifted": lambda x: x + 1,
    "cumulated": lambda x: x.cumsum(1),
    "maxout": lambda x: x.reshape(-1, 3, 2).amax(2).repeat(1, 2),
    "gated": lambda x: x[:, :3].repeat(1, 2) * x[:, 3:].repeat(1, 2),
    "statistics of others": lambda x: F.batch_norm(x, torch.ones(6), torch.ones(6)),
}


@pytest.mark.parametrize("between", RIGHT.values(), ids=RIGHT)
def test_functions_of_single_units_are_found_out(between: Callable[[Tensor], Tensor]) -> None:
    read = read_by(Between(between), torch.randn(4, 5))
    assert read["first"].tolist() == [[-1] * 5]
    assert sorted(read["head"][0].tolist()) == list(range(6))


@pytest.mark.parametrize("between", WRONG.values(), ids=WRONG)
def test_what_mixes_units_or_moves_zero_is_refused(between: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(UserError, match="between first and head the network"):
        read_by(Between(between), torch.randn(4, 5))


@given(st.permutations(range(9)), st.integers(1, 3))
def test_any_order_of_units_is_found_out(order: list[int], copies: int) -> None:
    read = read_by(Between(lambda x: x[:, order].repeat(1, copies), 9, 9 * copies), torch.randn(2, 5))
    assert read["head"].tolist() == [order * copies]


def test_the_part_is_what_has_gradients_where_no_activation_is_flat() -> None:
    model, x = Pictures(), torch.randn(3, 2, 4, 4)
    read = read_by(model, x)
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)}
    kept = [torch.tensor(units) for units in ([1, 0, 0, 1], [1, 0, 0, 0], [0, 1, 1])]
    kept = [units.bool() for units in kept]
    for name, units in zip("abc", kept, strict=True):
        mask = units.reshape((-1, 1, 1) if name != "c" else (-1,))
        layers[name].register_forward_hook(lambda _a, _b, out, mask=mask: out * mask)
    total = torch.zeros(())
    for _ in range(20):
        total = total + model(torch.randn(3, 2, 4, 4)).square().sum()
    total.backward()
    masks = kept_parameters(layers, ["a", "b", "c"], read, kept)
    for name, parameter in model.named_parameters():
        np.testing.assert_array_equal(masks[name], parameter.grad != 0, err_msg=name)


@pytest.mark.parametrize(
    "optimizer", ["{name: sgd, momentum: 0.9, weight_decay: 0.1}", "{name: adamw, weight_decay: 0.1}"]
)
def test_units_that_are_kept_decay_and_omitted_ones_stay(optimizer: str) -> None:
    """A kept unit whose activation is flat has no gradient either, but it is trained as in the network cut out."""
    from trainer import make

    local = make(
        "method=feddropout",
        "averaging.keep=0.5",
        f"optimizer={optimizer}",
        "student={name: mlp, hidden: [32], learning_rate: 0.01}",
    )
    bias = local.views(local.replica)["layers.0.bias"]
    bias[:16] = -1000.0
    change = local.views(local.train(0, round_index=3).update)
    moved = change["layers.0.bias"] != 0
    assert moved.sum() == 16
    assert 0 < moved[:16].sum() < 16
    assert ((change["layers.0.weight"] != 0).all(1) == moved).all()
    assert ((change["head.weight"] != 0).all(0) == moved).all()
    assert ((change["head.weight"] == 0).all(0) == ~moved).all()


def test_a_run_refuses_before_its_first_round(in_process, tmp_path) -> None:
    from command import TINY, assert_refused
    from plain_digits import PLAIN_DIGITS

    from fedkd_mpi.run import main

    student = "student={name: own_parts:Normalised, learning_rate: 0.1}"
    plain = [argument for argument in TINY if not argument.startswith("student")]
    result = in_process(main, *plain, PLAIN_DIGITS, "method=feddropout", student, "--output", tmp_path / "x.h5")
    assert_refused(result, "between first and head the network mixes them with others")
    assert not list(tmp_path.glob("x.h5*"))
