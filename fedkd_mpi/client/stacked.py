"""Training of several clients at once in one process: their networks are stacked, so that one operation serves all.

A client is a row of flat matrices. Steps on full batches are taken for all clients at once by torch.func.vmap. A short
batch (one per epoch) is a separate step of its client, so that every client trains on the same batches as alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from fedkd_mpi.client.batches import Batches
from fedkd_mpi.client.optimizer import Optimizer, clip_, make_optimizer
from fedkd_mpi.config.schema import Config
from fedkd_mpi.errors import UserError
from fedkd_mpi.methods import Method, wants_start
from fedkd_mpi.models.flat import FlatModel
from fedkd_mpi.tasks import Examples

Precision = Callable[[], AbstractContextManager[Any]]  # what a forward pass computes in
Rate = Callable[[int, int], float]  # the factor on the learning rates in a step of so many


class _Rows:
    """One network of every client of the stack: states and gradients [size, numbers] and one optimiser per row."""

    def __init__(self, role: str, network: FlatModel, optimizer: Optimizer, config: Config):
        self.network, self.role = network, role
        self.state = network.state.new_zeros(config.stack, network.state.numel())
        self.gradient = torch.zeros_like(self.state)
        self.optimizers: list[Optimizer] = []
        for state, gradient in zip(self.state, self.gradient, strict=True):
            state.grad = gradient
            self.optimizers.append(make_optimizer(state, config.optimizer, optimizer.learning_rate))
        self._views: dict[tuple[int, int], tuple[dict[str, Tensor], list[Tensor]]] = {}

    def views(self, start: int, stop: int) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Return the parameters of rows start to stop ([rows, ...], or [...] for one row) and their gradient views."""
        if (start, stop) not in self._views:
            rows = start if stop == start + 1 else slice(start, stop)
            values = [view.detach().requires_grad_() for view in self.network.views(self.state[rows])]
            names = [f"{self.role}.{layer.name}" for layer in self.network.layers]
            self._views[start, stop] = dict(zip(names, values, strict=True)), self.network.views(self.gradient[rows])
        return self._views[start, stop]


class _Both(nn.Module):
    """A method's loss as a module whose parameters functional_call can replace."""

    def __init__(self, method: Method, private: nn.ModuleDict, student: nn.Module | None):
        super().__init__()
        self.method, self.private, self.student = method, private, student

    def forward(self, batch: Examples) -> tuple[Tensor, Tensor, Tensor]:
        return self.method.loss(self.private, self.student, batch)


class Stack:
    """Networks of `stack` clients with one teacher architecture, built from the networks that train a single client.

    `networks` are the private network and, if the method has one, the student, each with its optimiser. Raises
    UserError naming the key `stack` for a method that corrects gradients per client, and for BatchNorm.
    """

    def __init__(self, config: Config, method: Method, networks: Sequence[tuple[FlatModel, Optimizer]]):
        self.config = config
        corrects = any(
            getattr(type(method), name) is not getattr(Method, name) for name in ("correct", "finish", "settle")
        )
        if corrects or wants_start(method):
            raise UserError(
                f"stack={config.stack}: method={config.method.name} trains clients one at a time; set stack=1"
            )
        if any(network.trainable.numel() < network.state.numel() or network.others.numel() for network, _ in networks):
            raise UserError(
                f"stack={config.stack}: networks with buffers (BatchNorm) cannot be stacked; set stack=1 or norm=group"
            )
        roles = dict(zip(("private", "student"), networks, strict=False))
        modules = [network.module for network, _ in networks]
        self._both = _Both(method, modules[0], modules[1] if modules[1:] else None)
        self._tied = [
            (f"{role}.{layer.name}", f"{role}.{other}")
            for role, (network, _) in roles.items()
            for layer in network.layers
            for other in network.names_of(layer)[1:]
        ]
        self._padding = [found for role, (network, _) in roles.items() for found in _padding(role, network, config)]
        self._stacked = vmap(self._call, randomness="error")
        self._rows = [_Rows(role, *roles[role], config) for role in roles]
        sums = config.exchange == "gradient_sum" and "student" in roles
        self._gradient_sums = torch.zeros_like(self._rows[1].state) if sums else None

    def check(self, examples: Examples, networks: Sequence[tuple[FlatModel, Optimizer]]) -> None:
        """Raise UserError naming the key `stack` if the networks cannot be stacked.

        `examples` are two samples of the client whose state `networks` hold. Gradients of two rows, each with
        one of the samples, must be those of the row alone but for rounding.
        """
        for row in range(2):
            self.put(row, networks)
        parts = [{name: part[[index, index]] for name, part in examples.items()} for index in (0, -1)]
        reason = None
        try:
            leaves = {name: leaf for rows in self._rows for name, leaf in rows.views(0, 2)[0].items()}
            batches = {name: torch.stack([part[name] for part in parts]) for name in examples}
            both = self._found(leaves, self._stacked(leaves, batches)[0])
            for row, batch in enumerate(parts):
                leaves = {name: leaf for rows in self._rows for name, leaf in rows.views(row, row + 1)[0].items()}
                for name, due in self._found(leaves, self._call(leaves, batch)[0]).items():
                    found, size = both[name][row], float(due.abs().amax()) if due.numel() else 0.0
                    if not torch.allclose(found, due, rtol=1e-2, atol=1e-3 * size + 1e-6, equal_nan=True):
                        reason = reason or f"the gradient of {name} is another than without stacking"
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            reason = str(error).strip().splitlines()[0].partition(". ")[0]
        if reason:
            raise UserError(f"stack={self.config.stack}: these networks cannot be stacked ({reason}); set stack=1")

    def _found(self, leaves: dict[str, Tensor], loss: Tensor) -> dict[str, Tensor]:
        """Return the dense gradients of losses; the rows of padding tokens have none, which vmap forgets."""
        # Not backward(): it warns of gradients that are not dense in memory, and these are parts of rows.
        found = torch.autograd.grad(loss.sum(), list(leaves.values()), materialize_grads=True)
        dense = {name: part.to_dense() if part.is_sparse else part for name, part in zip(leaves, found, strict=True)}
        for name, token in self._padding:
            dense[name][..., token, :] = 0.0
        return dense

    def put(self, row: int, networks: Sequence[tuple[FlatModel, Optimizer]]) -> None:
        """Copy the client whose state `networks` hold into a row."""
        for rows, (network, optimizer) in zip(self._rows, networks, strict=True):
            rows.state[row].copy_(network.state)
            rows.optimizers[row].state = optimizer.state

    def get(self, row: int, networks: Sequence[tuple[FlatModel, Optimizer]], gradient_sum: Tensor | None) -> None:
        """Copy a row back into `networks`, and the sum of its student's gradients into `gradient_sum`."""
        for rows, (network, optimizer) in zip(self._rows, networks, strict=True):
            network.state.copy_(rows.state[row])
            optimizer.state = rows.optimizers[row].state
        if gradient_sum is not None and self._gradient_sums is not None:
            gradient_sum.copy_(self._gradient_sums[row])

    def train(self, batches: Sequence[Batches], precision: Precision, rate: Rate) -> list[tuple[float, float]]:
        """Train the first rows, each on its batches, and return the mean losses of each.

        The rows must be in descending order of full batches, so that the rows with a batch left are always the first.
        `precision` returns the autocast context.
        """
        full, done = [own.full for own in batches], [0] * len(batches)
        totals = self._rows[0].state.new_zeros(len(batches), 2)
        if self._gradient_sums is not None:
            self._gradient_sums.zero_()

        def step(start: int, stop: int) -> None:
            parts = [next(batches[row]) for row in range(start, stop)]
            for row in range(start, stop):
                factor = rate(done[row], len(batches[row]))
                for rows in self._rows:
                    rows.optimizers[row].factor = factor
            batch = {name: torch.stack([part[name] for part in parts]) for name in parts[0]} if parts[1:] else parts[0]
            totals[start:stop] += self._step(start, stop, batch, precision)
            for row in range(start, stop):
                done[row] += 1

        for turn in range(max(full) + 1):
            for row, own in enumerate(batches):
                while done[row] < len(own) and not own.is_full(done[row]):
                    step(row, row + 1)
            if remaining := sum(count > turn for count in full):
                step(0, remaining)
        return [tuple(total / steps for total in row) for row, steps in zip(totals.tolist(), done, strict=True)]

    def _step(self, start: int, stop: int, batch: Examples, precision: Precision) -> Tensor:
        """Take one step of rows start to stop and return their losses [rows, 2]."""
        leaves: dict[str, Tensor] = {}
        gradients: list[Tensor] = []
        for rows in self._rows:
            values, targets = rows.views(start, stop)
            leaves |= values
            gradients += targets
        with precision():
            total, *own = (self._stacked if stop > start + 1 else self._call)(leaves, batch)
        torch._foreach_copy_(gradients, list(self._found(leaves, total).values()))
        for rows in self._rows:
            if self.config.optimizer.clip_norm:
                clip_(rows.gradient[start:stop], self.config.optimizer.clip_norm)
            for _, equal in groupby(rows.optimizers[start:stop], lambda optimizer: optimizer.factor):
                rows.optimizers[0].step_all(list(equal))
        if self._gradient_sums is not None:
            self._gradient_sums[start:stop] += self._rows[1].gradient[start:stop]
        return torch.stack([loss.detach().float() for loss in own], -1)

    def _call(self, leaves: dict[str, Tensor], batch: Examples) -> tuple[Tensor, Tensor, Tensor]:
        everywhere = leaves | {other: leaves[name] for name, other in self._tied}
        return functional_call(self._both, everywhere, (batch,), tie_weights=False)


def _padding(role: str, network: FlatModel, config: Config) -> Iterator[tuple[str, int]]:
    """Yield leaf and padding token of every embedding that has one; raises UserError if its weights are tied."""
    names = {name: network.names_of(layer) for layer in network.layers for name in network.names_of(layer)}
    for prefix, module in network.module.named_modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.padding_idx is not None:
            first, *others = names.get(f"{prefix}.weight" if prefix else "weight", ("",))
            if others:
                raise UserError(f"stack={config.stack}: {first} is tied and has a padding token; set stack=1")
            if first:  # not frozen
                yield f"{role}.{first}", module.padding_idx
