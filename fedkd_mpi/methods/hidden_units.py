"""Which units of the hidden layers each layer of a network reads, found by trials, for methods that omit units."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fedkd_mpi.common.torch_streams import torch_scope
from fedkd_mpi.errors import UserError

STEP = 10.0  # by which outputs are shifted, in standard deviations: no activation is flat on both sides of that
Layers = dict[str, nn.Linear | nn.Conv2d]


def sources(layers: Layers, hidden: Sequence[str], forward: Callable[[bool], object]) -> dict[str, Tensor]:
    """Return the unit of every hidden layer that each input column of a layer reads: int64 [hidden, columns], -1: none.

    `layers` are all layers of a network in evaluation mode, by name; `forward` calls it on one of two different inputs.
    Outputs of the layers are replaced by random numbers, and those of some units are shifted: a column whose input
    changes reads one of them. Raises UserError naming the layers if a column reads several units of a hidden layer, or
    if it is not zero although all units are, as after a normalisation over units or a sigmoid: a network without the
    omitted units would not compute the same.
    """
    trial = _Trial(layers, forward)
    found = {name: torch.full((len(hidden), _columns(layer)), -1) for name, layer in layers.items()}
    for place, name in enumerate(hidden):
        units = torch.arange(layers[name].weight.shape[0])
        for bit in range(max(1, (len(units) - 1).bit_length())):
            off, on = (trial.changed(name, (units >> bit & 1) == value) for value in (0, 1))
            for reader, columns in found.items():
                known = columns[place] >= 0 if bit else off[reader] | on[reader]
                if (off[reader] & on[reader]).any() or not torch.equal(known, off[reader] | on[reader]):
                    raise UserError(_refusal(name, reader, "mixes them with others"))
                columns[place] = torch.where(known, columns[place].clamp(min=0) + on[reader].long() * 2**bit, -1)
    constant, other = (trial.inputs({}, scale=0.0, other=which) for which in (False, True))
    for reader, columns in found.items():
        wrong = (columns >= 0).any(0) & (constant[reader] == other[reader]).all(0) & (constant[reader] != 0).any(0)
        if wrong.any():
            name = hidden[int((columns[:, wrong][:, 0] >= 0).nonzero()[0])]
            raise UserError(_refusal(name, reader, "makes another number of the zero of an omitted unit"))
    return found


def kept_parameters(
    layers: Layers, hidden: Sequence[str], read: dict[str, Tensor], kept: Sequence[Tensor]
) -> dict[str, Tensor]:
    """Return by name which numbers of weights and biases belong to the network of the kept units (bool [n] by layer).

    A column stays if it reads no hidden unit or one that is kept.
    """
    masks = {}
    for name, layer in layers.items():
        rows = kept[hidden.index(name)] if name in hidden else torch.ones(layer.weight.shape[0], dtype=torch.bool)
        pairs = zip(kept, read[name], strict=True)
        alive = torch.stack([units[column.clamp(min=0)] & (column >= 0) for units, column in pairs])
        columns = alive.any(0) | (read[name] < 0).all(0)
        groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
        of_row = columns.reshape(groups, -1).repeat_interleave(len(rows) // groups, 0)
        mask = rows[:, None] & of_row
        masks[f"{name}.weight"] = mask.reshape(*mask.shape, *(1,) * (layer.weight.dim() - 2)).expand(layer.weight.shape)
        masks[f"{name}.bias"] = rows
    return masks


class _Trial:
    """Calls of a network in which every layer returns given numbers, whatever its input is."""

    def __init__(self, layers: Layers, forward: Callable[[bool], object]):
        self._layers, self._forward = layers, forward
        shapes: dict[str, list[torch.Size]] = defaultdict(list)
        handles = [
            layer.register_forward_hook(lambda _layer, _inputs, output, name=name: shapes[name].append(output.shape))
            for name, layer in layers.items()
        ]
        try:
            forward(False)
        finally:
            for handle in handles:
                handle.remove()
        with torch_scope(0, "outputs of a trial"):
            self._outputs = {name: [torch.randn(shape) for shape in shapes[name]] for name in layers}
        self._before = self.inputs({})

    def changed(self, name: str, units: Tensor) -> dict[str, Tensor]:
        """Return for every layer which of its input columns change with the outputs of some units of a layer."""
        wide = units.reshape(-1, *(1,) * (self._layers[name].weight.dim() - 2))
        results = [self.inputs({name: wide * step}) for step in (STEP, -STEP)]
        return {
            reader: torch.stack([(result[reader] != before).any(0) for result in results]).any(0)
            for reader, before in self._before.items()
        }

    def inputs(self, shifts: dict[str, Tensor], *, scale: float = 1.0, other: bool = False) -> dict[str, Tensor]:
        """Return the inputs of every layer as [numbers, columns], over all of its calls."""
        seen: dict[str, list[Tensor]] = defaultdict(list)
        device = next(iter(self._layers.values())).weight.device

        def given(name: str, layer: nn.Linear | nn.Conv2d, values: Tensor) -> Tensor:
            axis = -1 if layer.weight.dim() == 2 else -3
            output = self._outputs[name][len(seen[name])] * scale + shifts.get(name, torch.zeros(()))
            seen[name].append(values.detach().cpu().movedim(axis, -1).reshape(-1, _columns(layer)))
            return output.to(device)

        for name, layer in self._layers.items():
            layer.forward = partial(given, name, layer)  # type: ignore[method-assign]
        try:
            with torch_scope(0, "dropout of a trial"):
                self._forward(other)
        finally:
            for layer in self._layers.values():
                del layer.forward
        empty: dict[str, Any] = {name: torch.zeros(0, _columns(layer)) for name, layer in self._layers.items()}
        return empty | {name: torch.cat(parts) for name, parts in seen.items()}


def _columns(layer: nn.Linear | nn.Conv2d) -> int:
    return layer.in_channels if isinstance(layer, nn.Conv2d) else layer.in_features


def _refusal(name: str, reader: str, fault: str) -> str:
    return (
        f"method=feddropout omits units of hidden layers, but between {name} and {reader} the network {fault}: choose"
        " one without normalisation over units, softmax or sigmoid there, or another method"
    )
