"""Optimisers of one flat vector, whose state belongs to the client at hand."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from fedkd_mpi import sections
from fedkd_mpi.network import Network

BETAS, EPSILON = (0.9, 0.999), 1e-8  # Kingma and Ba 2015


class Optimizer(ABC):
    """Moves a network's trainable part by its gradient, in one fused operation of torch.

    `state` is the client's, a tensor a name, {} before its first step; the caller puts it here. The update functions
    are torch's own, without the classes around them: the first of those loads torch's compiler, which takes as long
    as torch itself to import, in every process.
    """

    def __init__(self, network: Network, settings: sections.Optimizer, learning_rate: float):
        self.vector, self.learning_rate = network.trainable, learning_rate
        self.weight_decay, self.momentum = settings.weight_decay, settings.momentum
        self.state: dict[str, Tensor] = {}

    @abstractmethod
    def step(self) -> None:
        """Take one step along `network.trainable.grad`."""


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum as torch.optim.SGD has it."""

    @torch.no_grad()
    def step(self) -> None:
        buffers = [self.state.get("momentum_buffer")]
        sgd(
            [self.vector],
            [self.vector.grad],
            buffers,
            fused=True,
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            lr=self.learning_rate,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )
        if buffers[0] is not None:
            self.state["momentum_buffer"] = buffers[0]


class Adam(Optimizer):
    """Adam (Kingma and Ba 2015), as torch.optim.Adam has it."""

    @torch.no_grad()
    def step(self) -> None:
        if not self.state:
            zeros = torch.zeros((), device=self.vector.device), *(torch.zeros_like(self.vector) for _ in range(2))
            self.state.update(zip(("step", "exp_avg", "exp_avg_sq"), zeros, strict=True))
        adam(
            [self.vector],
            [self.vector.grad],
            [self.state["exp_avg"]],
            [self.state["exp_avg_sq"]],
            [],
            [self.state["step"]],
            fused=True,
            amsgrad=False,
            beta1=BETAS[0],
            beta2=BETAS[1],
            lr=self.learning_rate,
            weight_decay=self.weight_decay,
            eps=EPSILON,
            maximize=False,
        )


def clip_(gradient: Tensor, longest: float) -> None:
    """Scale a flat gradient down to this norm, in place, if it is longer (Pascanu et al. 2013).

    To the bit what torch.nn.utils.clip_grad_norm_ does, whose ways for lists of tensors take a tenth of a small step.
    """
    gradient.mul_((longest / (torch.linalg.vector_norm(gradient) + 1e-6)).clamp_(max=1.0))


def make_optimizer(network: Network, settings: sections.Optimizer, learning_rate: float) -> Optimizer:
    """Return the optimiser of a network that the configuration names."""
    return {"sgd": SGD, "adam": Adam}[settings.name](network, settings, learning_rate)
