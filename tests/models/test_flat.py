"""A flat network behaves as the module it holds, and its optimiser as one over a list of parameters."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fedkd_mpi.client.optimizer import clip_, make_optimizer
from fedkd_mpi.config.training import OptimizerConfig
from fedkd_mpi.errors import RunFault
from fedkd_mpi.models.flat import FlatModel


def module(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    convolution = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten())
    net = nn.Sequential(*convolution, nn.Linear(12, 5), nn.Linear(5, 2))
    net[5].weight.requires_grad_(False)
    return net


def batch(seed: int) -> torch.Tensor:
    return torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(seed))


LAYERS = {
    "0.weight": ((3, 1, 3, 3), True),
    "0.bias": ((3,), False),
    "1.weight": ((3,), False),
    "1.bias": ((3,), False),
    "4.weight": ((5, 12), True),
    "4.bias": ((5,), False),
    "5.bias": ((2,), False),
    "1.running_mean": ((3,), False),
    "1.running_var": ((3,), False),
}


def test_layers_are_trainable_parameters_then_float_buffers():
    network = FlatModel(module(), "cpu")
    assert {layer.name: (layer.shape, layer.compressible) for layer in network.layers} == LAYERS
    assert [layer.name for layer in network.layers] == list(LAYERS)
    assert network.exchanged_layers == network.layers
    assert network.local_buffers is None


def test_local_buffers_do_not_travel():
    network = FlatModel(module(), "cpu", exchange_buffers=False)
    assert [layer.name for layer in network.exchanged_layers] == list(LAYERS)[:-2]
    assert len(network.exchanged(network.state)) == 7
    network.module(batch(0))
    views = dict(zip(LAYERS, network.views(network.state), strict=True))
    assert torch.equal(network.local_buffers, network.state[-network.local_buffers.numel() :])
    views["1.running_mean"].fill_(3.0)
    assert (network.local_buffers == 3.0).sum() == 3


def test_views_of_any_flat_vector_are_disjoint_aligned_and_in_the_layers_shapes():
    network = FlatModel(module(), "cpu")
    flat = torch.zeros_like(network.state)
    for number, (view, layer) in enumerate(zip(network.views(flat), network.layers, strict=True), start=1):
        assert tuple(view.shape) == layer.shape
        assert (view.data_ptr() - flat.data_ptr()) % 64 == 0
        assert not view.any()
        view.fill_(number)
    assert flat.count_nonzero() == sum(layer.numel for layer in network.layers)


def test_the_module_computes_as_before_and_its_tensors_are_the_flat_vector():
    original = module()
    network = FlatModel(copy.deepcopy(original), "cpu")
    torch.testing.assert_close(network.module(batch(0)), original(batch(0)))
    for name, tensor in original.state_dict().items():
        torch.testing.assert_close(network.module.state_dict()[name], tensor)
    own = dict(network.module.named_parameters()) | dict(network.module.named_buffers())
    for layer, view in zip(network.layers, network.views(network.state), strict=True):
        assert own[layer.name].data_ptr() == view.data_ptr()
        assert torch.equal(own[layer.name], view)
    network.state.zero_()
    assert not network.module[4](torch.ones(1, 12)).any()


def test_gradients_arrive_in_the_flat_vector_and_zero_grad_clears_them_in_place():
    original = module()
    network = FlatModel(copy.deepcopy(original), "cpu")
    for seed in range(2):
        original.zero_grad()
        network.zero_grad()
        original(batch(seed)).square().sum().backward()
        network.module(batch(seed)).square().sum().backward()
        views = dict(zip(LAYERS, network.views(network.gradient), strict=True))
        for name, parameter in original.named_parameters():
            if parameter.requires_grad:
                torch.testing.assert_close(views[name], parameter.grad, rtol=1e-5, atol=1e-5, msg=name)
        assert network.trainable.grad.data_ptr() == network.gradient.data_ptr()
    assert network.module[5].weight.grad is None


@pytest.mark.parametrize(
    ("settings", "make"),
    [
        (OptimizerConfig(name="sgd"), lambda tensors: torch.optim.SGD(tensors, 0.05)),
        (OptimizerConfig(momentum=0.9, weight_decay=0.01), lambda t: torch.optim.SGD(t, 0.05, 0.9, weight_decay=0.01)),
        (
            OptimizerConfig(name="adam", weight_decay=0.01),
            lambda tensors: torch.optim.Adam(tensors, 0.05, weight_decay=0.01),
        ),
        (
            OptimizerConfig(momentum=0.9, weight_decay=0.01, nesterov=True),
            lambda tensors: torch.optim.SGD(tensors, 0.05, 0.9, weight_decay=0.01, nesterov=True),
        ),
        (
            OptimizerConfig(name="adam", betas=[0.5, 0.75], eps=0.01),
            lambda tensors: torch.optim.Adam(tensors, 0.05, (0.5, 0.75), 0.01),
        ),
        (
            OptimizerConfig(name="adamw", weight_decay=0.1),
            lambda tensors: torch.optim.AdamW(tensors, 0.05, weight_decay=0.1),
        ),
    ],
    ids=["sgd", "momentum", "adam", "nesterov", "betas and eps", "adamw"],
)
def test_a_flat_step_is_the_step_over_a_list_of_parameters(settings: OptimizerConfig, make):
    original = module()
    network = FlatModel(copy.deepcopy(original), "cpu")
    frozen = network.module[5].weight.clone()
    flat = make_optimizer(network.trainable, settings, 0.05)
    listed = make([parameter for parameter in original.parameters() if parameter.requires_grad])
    for seed in range(4):
        for net in (network, original):
            net.zero_grad()
            (net.module if net is network else net)(batch(seed)).square().mean().backward()
            if net is network:
                noise = dict(zip(LAYERS, network.views(network.gradient), strict=True))["0.bias"]
            else:
                # BatchNorm takes this bias out again: its gradient is rounding alone, which Adam makes whole steps of
                assert max(noise.abs().max(), original[0].bias.grad.abs().max()) < 1e-7
                original[0].bias.grad.copy_(noise)
        flat.step()
        listed.step()
    for name, tensor in original.state_dict().items():
        torch.testing.assert_close(network.module.state_dict()[name], tensor, rtol=1e-5, atol=1e-6, msg=name)
    assert torch.equal(network.module[5].weight, frozen)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_the_layer_that_is_not_finite_is_named(bad: float):
    network = FlatModel(module(), "cpu")
    network.require_finite(network.state, "student", 3, 5)
    flat = network.state.clone()
    network.views(flat)[4][2, 7] = bad
    with pytest.raises(RunFault, match="the student is not finite") as caught:
        network.require_finite(flat, "student", 3, 5)
    assert caught.value.location() == "round 4, client 5, layer 4.weight"


def test_a_module_without_buffers_has_no_local_ones():
    network = FlatModel(nn.Linear(3, 2), "cpu", exchange_buffers=False)
    assert network.local_buffers is None
    assert network.exchanged_layers == network.layers


def test_finite_numbers_whose_sum_is_not_are_finite():
    network = FlatModel(module(), "cpu")
    network.require_finite(torch.full_like(network.state, 3e38), "student", 3, 5)


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1.0, 1e6])
@pytest.mark.parametrize("size", [1, 1000, 70_000])
def test_clipping_has_the_bits_of_torchs(size: int, scale: float):
    gradient = scale * torch.randn(size, generator=torch.Generator().manual_seed(size))
    parameter = nn.Parameter(torch.zeros(size))
    parameter.grad = gradient.clone()
    nn.utils.clip_grad_norm_([parameter], 1.0)
    clip_(gradient, 1.0)
    assert torch.equal(gradient, parameter.grad)
