"""Model families: known sizes, what forward returns, and options that are refused before torch is loaded."""

from __future__ import annotations

import pytest
import torch
from loaded_modules import loaded_after
from torch import Tensor, nn
from torch.nn import functional

from fedkd_mpi import models
from fedkd_mpi.common.torch_streams import torch_scope
from fedkd_mpi.errors import UserError
from fedkd_mpi.models import Output
from fedkd_mpi.models.norms import norm as make_norm

CIFAR, MNIST, DIGITS = (3, 32, 32), (1, 28, 28), (1, 8, 8)
SMALL_CNN = {"channels": [4, 6], "kernel_size": 3, "padding": 1, "hidden": [10]}


def build(name: str, shape: tuple[int, ...], **options: object) -> nn.Module:
    with torch_scope(0, "model"):
        return models.build(name, shape, 10, options, "teacher")


def inputs(shape: tuple[int, ...], n: int = 3) -> Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "shape", "options", "parameters"),
    [
        ("cnn", MNIST, {}, 582_026),  # the FedAvg CNN without padding
        ("cnn", MNIST, {"padding": 2}, 1_663_370),  # as McMahan et al. (2017) give it
        ("mlp", DIGITS, {}, 17_226),
        ("mlp", DIGITS, {"hidden": [256, 128]}, 50_826),
        ("mlp", DIGITS, {"hidden": []}, 650),
        ("resnet", CIFAR, {}, 269_722),  # ResNet-20 of He et al. (2016), option A
        ("resnet", CIFAR, {"depth": 32}, 464_154),
        ("resnet", CIFAR, {"depth": 44, "norm": "batch"}, 658_586),
        ("resnet", CIFAR, {"depth": 56}, 853_018),
        ("resnet", CIFAR, {"depth": 18}, 11_173_962),  # ResNet-18 with the 3x3 stem for CIFAR
    ],
)
def test_published_parameter_counts(name, shape, options, parameters):
    assert sum(p.numel() for p in build(name, shape, **options).parameters()) == parameters


EVERY_KIND = [
    ("mlp", DIGITS, {"hidden": [12, 7]}, (12, 7)),
    ("mlp", (5,), {"hidden": [4], "activation": "gelu"}, (4,)),
    ("mlp", DIGITS, {"hidden": [], "activation": "tanh"}, ()),
    ("cnn", DIGITS, SMALL_CNN, (4, 6, 10)),
    ("cnn", (3, 9, 12), {**SMALL_CNN, "norm": "group", "hidden": []}, (4, 6)),
    ("cnn", DIGITS, {**SMALL_CNN, "norm": "batch", "hidden": [5, 4]}, (4, 6, 5, 4)),
    ("resnet", DIGITS, {"depth": 8, "width": 4}, (4, 8, 16)),
    ("resnet", (3, 7, 9), {"depth": 14, "width": 6, "norm": "batch"}, (6, 12, 24)),
    ("resnet", DIGITS, {"depth": 18, "width": 4}, (4, 8, 16, 32)),
]


@pytest.mark.parametrize(("name", "shape", "options", "sizes"), EVERY_KIND)
def test_forward_returns_what_hidden_sizes_says_and_trains_every_parameter(name, shape, options, sizes):
    model = build(name, shape, **options)
    x = inputs(shape)
    kept = x.clone()
    output = model(x)
    assert isinstance(output, Output)
    assert model.hidden_sizes == sizes
    assert [tuple(h.shape) for h in output.hidden] == [(3, size) for size in sizes]
    assert output.logits.shape == (3, 10)
    assert output.attention == ()
    assert torch.equal(x, kept)
    (functional.cross_entropy(output.logits, torch.tensor([1, 2, 3])) + sum(h.sum() for h in output.hidden)).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize(("name", "shape", "options", "sizes"), EVERY_KIND)
def test_gradients_of_the_in_place_layers_equal_finite_differences(name, shape, options, sizes):
    model = build(name, shape, **options).double()
    x = inputs(shape, n=2).double().requires_grad_()

    def flat(x: Tensor) -> Tensor:
        output = model(x)
        return torch.cat([output.logits, *output.hidden], 1)

    assert torch.autograd.gradcheck(flat, x, eps=1e-7, atol=1e-5, fast_mode=True)


@pytest.mark.parametrize("norm", ["none", "group", "batch"])
def test_cnn_equals_the_textbook_order_of_its_layers(norm):
    model = build("cnn", (2, 12, 10), **{**SMALL_CNN, "norm": norm})
    x, features = inputs((2, 12, 10)), []
    output = model(x)
    for conv, layer in zip(model.convs, model.norms, strict=True):
        x = functional.max_pool2d(functional.relu(layer(conv(x))), 2)
        features.append(x.mean((2, 3)))
    features.append(functional.relu(model.layers[0](x.flatten(1))))
    for ours, textbook in zip((*output.hidden, output.logits), (*features, model.head(features[-1])), strict=True):
        assert torch.equal(ours, textbook)


def test_mlp_equals_the_textbook():
    model = build("mlp", DIGITS, hidden=[12, 7], activation="tanh")
    x = inputs(DIGITS)
    first = torch.tanh(x.flatten(1) @ model.layers[0].weight.T + model.layers[0].bias)
    second = torch.tanh(first @ model.layers[1].weight.T + model.layers[1].bias)
    torch.testing.assert_close(model(x).hidden, (first, second))
    torch.testing.assert_close(model(x).logits, second @ model.head.weight.T + model.head.bias)


def test_resnet_with_silent_blocks_passes_the_image_on_by_its_shortcuts():
    model = build("resnet", CIFAR, depth=14, width=4)
    for name, parameter in model.named_parameters():
        if ".norm2." in name:
            nn.init.zeros_(parameter)
    x = inputs(CIFAR)
    stem = functional.relu(model.norm(model.stem(x)))
    first, second, third = model(x).hidden
    torch.testing.assert_close(first, stem.mean((2, 3)))
    torch.testing.assert_close(second[:, 2:6], stem[:, :, ::2, ::2].mean((2, 3)))
    torch.testing.assert_close(third[:, 6:10], stem[:, :, ::4, ::4].mean((2, 3)))
    assert second.count_nonzero() + third.count_nonzero() == 2 * 3 * 4


def test_a_sample_does_not_depend_on_the_rest_of_the_batch_with_group_norm():
    x = inputs(DIGITS, n=4)
    for name, options in (("cnn", {**SMALL_CNN, "norm": "group"}), ("resnet", {"depth": 8})):
        model = build(name, DIGITS, **options)
        torch.testing.assert_close(model(x[:1]).logits, model(x).logits[:1])


@pytest.mark.parametrize(
    ("channels", "groups"), [(64, 8), (16, 8), (12, 6), (8, 4), (7, 1), (6, 3), (4, 2), (2, 1), (1, 1)]
)
def test_groups_divide_the_channels_and_hold_two_at_least(channels, groups):
    assert make_norm("group", channels).num_groups == groups


def test_same_stream_gives_the_same_model():
    one, other = (build("cnn", DIGITS, **SMALL_CNN).state_dict() for _ in "ab")
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cnn", {"chanels": [8]}, r"unknown key teacher\.chanels; did you mean teacher\.channels\?"),
        ("mlp", {"kernel": 3}, r"unknown key teacher\.kernel; keys of mlp: hidden, activation"),
        ("resent", {}, r"teacher\.name=resent is unknown; did you mean resnet\?"),
        ("cnn", {"channels": []}, r"teacher\.channels=\[\]: .* at least 1 item"),
        ("cnn", {"channels": [8, 0]}, r"teacher\.channels\.1=0: .* greater than or equal to 1"),
        ("cnn", {"padding": -1}, r"teacher\.padding=-1"),
        ("cnn", {"norm": "layer"}, r"teacher\.norm=layer: .*'none', 'group' or 'batch'"),
        ("mlp", {"hidden": 64}, r"teacher\.hidden=64: .*list"),
        ("mlp", {"hidden": ["64"]}, r"teacher\.hidden\.0=64: .*whole number"),
        ("mlp", {"hidden": [True]}, r"teacher\.hidden\.0=True: .*whole number"),
        ("resnet", {"depth": 21}, r"teacher\.depth=21: must be 6n\+2 .* or 18"),
        ("resnet", {"depth": 2}, r"teacher\.depth=2: must be 6n\+2"),
        ("resnet", {"depth": 20, "width": 0, "nrom": "batch"}, r"teacher\.width=0.*; unknown key teacher\.nrom"),
    ],
)
def test_wrong_options_are_named(name, options, message):
    for refuse in (lambda: models.check(name, options, "teacher"), lambda: build(name, CIFAR, **options)):
        with pytest.raises(UserError, match=message) as caught:
            refuse()
        assert "\n" not in str(caught.value)


def test_check_fills_in_defaults_and_is_its_own_fixed_point():
    resolved = models.check("cnn", {"channels": [8]}, "student")
    assert resolved == {"channels": [8], "kernel_size": 5, "padding": 0, "hidden": [512], "norm": "none"}
    assert models.check("cnn", resolved, "student") == resolved


def test_options_are_checked_without_torch():
    modules = loaded_after(
        "from fedkd_mpi import models; models.check('resnet', {'depth': 56}, 'teacher')\n"
        "models.check('some.where:Model', {'a': 1}, 'teacher')"
    )
    assert "torch" not in modules


@pytest.mark.parametrize(
    ("name", "shape", "options", "message"),
    [
        ("cnn", DIGITS, {}, r"teacher: images of 8x8 are too small: stage 2 of 2"),
        ("cnn", (1, 28, 3), {"channels": [4]}, r"teacher: images of 28x3 are too small: stage 1 of 1"),
        ("cnn", (64,), {}, r"teacher: a cnn needs images .* shape \[64\]"),
        ("resnet", (1, 8), {}, r"teacher: a resnet needs images .* shape \[1, 8\]"),
    ],
)
def test_data_that_do_not_fit_the_model_are_named(name, shape, options, message):
    with pytest.raises(UserError, match=message):
        build(name, shape, **options)


def test_smallest_image_the_cnn_takes():
    assert build("cnn", (1, 16, 16), hidden=[8])(inputs((1, 16, 16))).logits.shape == (3, 10)
    with pytest.raises(UserError, match="too small"):
        build("cnn", (1, 15, 16), hidden=[8])


class OneLayer(nn.Module):
    """A user's own model."""

    hidden_sizes = ()

    def __init__(self, input_shape: tuple[int, ...], num_classes: int, scale: float = 1.0):
        super().__init__()
        self.layer, self.scale = nn.Linear(input_shape[0], num_classes), scale

    def forward(self, x: Tensor) -> Output:
        return Output(self.layer(x) * self.scale)


def test_own_models_by_dotted_path():
    model = build(f"{__name__}:OneLayer", (5,), scale=0.0)
    assert isinstance(model, OneLayer)
    assert not model(inputs((5,))).logits.any()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (f"{__name__}:OneLayer", {"scael": 2}, "teacher: .*OneLayer does not accept these options: .*'scael'"),
        (f"{__name__}:TwoLayers", {}, "teacher.name=.*TwoLayers cannot be loaded"),
        ("no.such.module:Model", {}, "teacher.name=no.such.module:Model cannot be loaded"),
        ("raising_module:Model", {}, r"cannot be loaded: ZeroDivisionError: at import \(raising_module.py, line 3\)"),
        ("..models:Model", {}, "cannot be loaded: name it as package.module:Name"),
    ],
)
def test_faults_of_own_models_are_named(name, options, message):
    with pytest.raises(UserError, match=message):
        build(name, (5,), **options)
