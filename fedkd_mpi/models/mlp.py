"""Multilayer perceptrons."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedkd_mpi.errors import UserError
from fedkd_mpi.models.output import Output, Texts

# A linear layer does not need its output for the backward pass, so that ReLU may overwrite it.
_ACTIVATIONS = {"relu": torch.relu_, "gelu": functional.gelu, "tanh": torch.tanh}


class MLP(nn.Module):
    """A fully connected network on the flattened input; the hidden features are the hidden layers after activation.

    Raises UserError for texts.
    """

    def __init__(self, input_shape: Sequence[int], num_classes: int, *, hidden: Sequence[int], activation: str):
        super().__init__()
        if isinstance(input_shape, Texts):
            raise UserError("an mlp does not accept texts; use a bert")
        widths = (prod(input_shape), *hidden)
        self.hidden_sizes = tuple(hidden)
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))
        self.head = nn.Linear(widths[-1], num_classes)
        self._activation = _ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Output:
        x = x.flatten(1)
        features = []
        for layer in self.layers:
            x = self._activation(layer(x))
            features.append(x)
        return Output(self.head(x), tuple(features))
