"""A torch optimiser that a configuration names by its path, on a network's parameters one by one."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fedkd_mpi.client.optimizer import Optimizer, make_optimizer
from fedkd_mpi.common.options import own_options
from fedkd_mpi.common.registry import resolve, subclass_of
from fedkd_mpi.common.remembered import Kind, like
from fedkd_mpi.config.training import OptimizerConfig
from fedkd_mpi.errors import UserError, one_line, shown
from fedkd_mpi.models.flat import FlatModel

GROUPS = "groups"  # what a name in `state` begins with that belongs to no parameter, but to a group of parameters
NUMBERS: dict[str, type] = {"bool": bool, "int": int, "float": float}  # written behind the names of numbers
DTYPES = (torch.float64, torch.float32, torch.float16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8,
          torch.bool)  # fmt: skip


class OwnOptimizer(Optimizer):
    """An optimiser of torch's interface, `Class(params, lr=..., **options)`, whose state belongs to the client.

    `state` holds what the optimiser keeps per parameter as "parameter/key", and the values of its parameter groups that
    have changed as "groups/number/key". A number is a tensor whose name ends in its type. Raises UserError naming
    optimizer.name if the optimiser cannot work so: a trial of two steps on gradients of 0.001 says so at once.
    """

    def __init__(self, network: FlatModel, settings: OptimizerConfig, learning_rate: float):
        kind = resolve(settings.name, {}, "optimizer.name", subclass_of(torch.optim.Optimizer, "torch optimiser"))
        self._key = f"optimizer.name={settings.name}"
        for one in list(inspect.signature(kind.step).parameters.values())[1:]:
            if one.default is one.empty and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD):
                raise UserError(f"{self._key}: its step() needs {one.name}, which local training does not give")
        options = own_options(kind, settings.options or {}, settings.name, "optimizer.options")
        self._parameters = {layer.name: network.module.get_parameter(layer.name) for layer in network.parameter_layers}
        self._torch: torch.optim.Optimizer | None = None
        self._new: dict[str, Tensor] = {}  # what the optimiser has before its first step
        super().__init__(network.trainable, settings, learning_rate)
        self._kinds: dict[str, Kind] = {}
        if not self._parameters:  # torch's optimisers refuse an empty list
            return
        try:
            self._torch = kind(list(self._parameters.values()), lr=learning_rate, **options)
        except Exception as error:
            raise UserError(f"{self._key}: {one_line(error)}") from error
        self._first = [copy.deepcopy(_of_group(group)) for group in self._torch.param_groups]
        if not any("lr" in first for first in self._first):
            raise UserError(f"{self._key}: its parameter groups have no learning rate lr")
        self._new = {name: tensor.clone() for name, tensor in self.state.items()}
        self._try(network, self._torch)

    @property
    def state(self) -> dict[str, Tensor]:
        """The state of the client in training, of which each tensor is contiguous."""
        found: dict[str, Tensor] = {}
        if self._torch is None:
            return found
        own = {id(parameter): name for name, parameter in self._parameters.items()}
        for parameter, values in self._torch.state.items():
            if id(parameter) not in own:
                raise UserError(f"{self._key} keeps {shown(str(parameter))} in its state, which is no parameter")
            for key, value in values.items():
                found.update([self._saved(f"{own[id(parameter)]}/{key}", value)])
        changing = {name.partition(":")[0] for name in self._kinds}  # saved even when they have their first value again
        for index, (group, first) in enumerate(zip(self._torch.param_groups, self._first, strict=True)):
            for key, value in _of_group(group).items():
                changed = f"{GROUPS}/{index}/{key}" in changing or not _same(value, first.get(key))
                if key != "lr" and changed:
                    found.update([self._saved(f"{GROUPS}/{index}/{key}", value)])
        return found

    @state.setter
    def state(self, state: dict[str, Tensor]) -> None:
        if self._torch is None:
            return
        self._torch.state.clear()
        state = state or {name: tensor.clone() for name, tensor in self._new.items()}
        for group, first in zip(self._torch.param_groups, self._first, strict=True):
            group.update(copy.deepcopy(first))
        for name, tensor in state.items():
            owner, _, key = name.rpartition("/")
            value: Any = tensor
            key, _, number = key.partition(":")
            if number:
                value = NUMBERS[number](tensor.item()) if number in NUMBERS else None
            if owner in self._parameters:
                parameter = self._parameters[owner]
                if not number and tensor.shape == parameter.shape:  # with the strides that torch gives it at first
                    value = torch.empty_like(parameter, dtype=tensor.dtype, requires_grad=False).copy_(tensor)
                self._torch.state[parameter][key] = value
            else:
                self._torch.param_groups[int(owner.rpartition("/")[2])][key] = value

    def remembers(self) -> dict[str, Kind]:
        """Return what `state` holds after each of the first two steps; it may hold more (admits())."""
        return self._kinds

    def admits(self, name: str) -> bool:
        """Whether `state` may have such a name."""
        owner, _, key = name.rpartition("/")
        start, _, index = owner.rpartition("/")
        groups = range(len(self._torch.param_groups)) if self._torch else ()
        of_group = start == GROUPS and index in map(str, groups)
        return (owner in self._parameters or of_group) and key.partition(":")[2] in ("", "none", *NUMBERS)

    def step(self) -> None:
        """Take one optimiser step."""
        if self._torch is None:
            return
        for group, first in zip(self._torch.param_groups, self._first, strict=True):
            if "lr" in first:
                group["lr"] = first["lr"] * self.factor
        self._torch.step()

    @staticmethod
    def step_all(optimizers: Sequence[Any]) -> None:
        for optimizer in optimizers:
            optimizer.step()

    def _try(self, network: FlatModel, optimizer: torch.optim.Optimizer) -> None:
        """Take two steps and set the network back."""
        kept, before = network.state.clone(), _outside(optimizer)
        places = {name: (tensor.data_ptr(), tensor.grad) for name, tensor in self._parameters.items()}
        with torch.random.fork_rng(devices=[] if kept.device.type == "cpu" else [kept.device]):
            network.trainable_gradient.fill_(1e-3)
            try:
                self.step()
                first = set(self.state)
                self.step()
            except UserError:
                raise
            except Exception as error:
                raise UserError(f"{self._key}: a trial step: {one_line(error)}") from error
        for name, (place, gradient) in places.items():
            if self._parameters[name].data_ptr() != place or self._parameters[name].grad is not gradient:
                raise UserError(f"{self._key} replaces the memory of {name}: it must change its values in place")
        after = _outside(optimizer)
        if changed := [name for name in after if not _same(after[name], before.get(name))]:
            raise UserError(
                f"{self._key} changes its attribute {changed[0]}: what lasts from step to step must be in its `state`"
                " or `param_groups`, which belong to the client"
            )
        self._kinds = {name: like(tensor) for name, tensor in self.state.items() if name in first}
        self.state = {}
        network.state.copy_(kept)
        network.zero_grad()

    def _saved(self, name: str, value: Any) -> tuple[str, Tensor]:
        """Return the name and the tensor by which a checkpoint holds a value."""
        if isinstance(value, Tensor) and value.dtype in DTYPES:
            return name, value.detach().contiguous()
        for number, kind in NUMBERS.items():
            if type(value) is kind:
                return f"{name}:{number}", torch.tensor(value, dtype=torch.float64 if kind is float else None)
        if value is None:
            return f"{name}:none", torch.zeros(0)
        what = f"a tensor of {value.dtype}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise UserError(f"{self._key} keeps {what} as {name}: only numbers and tensors of common types can be saved")


def optimizer_for(network: FlatModel, settings: OptimizerConfig, learning_rate: float) -> Optimizer:
    """Return the optimiser that the configuration names, for a network."""
    if ":" in settings.name:
        return OwnOptimizer(network, settings, learning_rate)
    return make_optimizer(network.trainable, settings, learning_rate)


def _of_group(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params"}


def _outside(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the numbers and tensors that an optimiser has as attributes of its own."""
    return {
        name: copy.deepcopy(value)
        for name, value in vars(optimizer).items()
        if isinstance(value, bool | int | float | Tensor)
    }


def _same(value: Any, other: Any) -> bool:
    if isinstance(value, Tensor) and isinstance(other, Tensor):
        return torch.equal(value, other)
    return type(value) is type(other) and bool(value == other)
