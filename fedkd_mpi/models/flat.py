"""A module whose tensors are views of one flat vector; copying, subtracting and optimising are single operations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedkd_mpi.errors import RunFault
from fedkd_mpi.models.layer import Layer
from fedkd_mpi.models.module_tensors import Slot, frozen_names, own_tensors, require_plain
from fedkd_mpi.models.state_file import digest_of

ALIGNMENT = 16  # float32 entries; each tensor starts at a multiple of 64 bytes in the flat vector


def gradient_of(vector: Tensor) -> Tensor:
    """Return the gradient that a flat vector has been given."""
    if vector.grad is None:
        raise ValueError("the vector has no gradient")
    return vector.grad


class FlatModel:
    """A module with its trainable parameters, then its floating-point buffers, in the flat vector `state`.

    `layers` lists them in order; frozen and empty parameters are in neither. `trainable` is the part of `state` that an
    optimiser updates; the flat gradient is its `.grad`. `others` are the bytes of all other buffers (counters, masks),
    which belong to the client in training and are never exchanged. Raises UserError naming the tensor if the module
    cannot be stored in this form.
    """

    def __init__(self, module: nn.Module, device: str, *, exchange_buffers: bool = True):
        require_plain(module, exchanged=exchange_buffers)
        # Convolutions and pooling are faster in channels-last memory order; the shapes do not change.
        # type: torch's overloads of Module.to leave memory_format out
        self.module = module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        parameters, buffers, others = own_tensors(self.module)
        self.layers = [Layer(slot.name, tuple(slot.tensor.shape), slot.tensor.dim() >= 2) for slot in parameters]
        self.layers += [Layer(slot.name, tuple(slot.tensor.shape), False) for slot in buffers]
        self.frozen = frozen_names(self.module)
        self._strides = [_strides(slot.tensor) for slot in parameters + buffers]
        self._offsets, size = [], 0
        for layer in self.layers:
            self._offsets.append(size)
            size += -(-layer.numel // ALIGNMENT) * ALIGNMENT
        first_buffer = self._offsets[len(parameters)] if buffers else size
        self.state = torch.zeros(size, device=device)
        self.gradient = torch.zeros_like(self.state)
        self.trainable = nn.Parameter(self.state[:first_buffer])
        self.trainable.grad = self.gradient[:first_buffer]
        self.parameter_layers, buffer_layers = self.layers[: len(parameters)], self.layers[len(parameters) :]
        self.exchanged_buffers = buffer_layers if exchange_buffers else []
        self.exchanged_layers = self.parameter_layers + self.exchanged_buffers
        self.local_buffers = self.state[first_buffer:] if not exchange_buffers and buffers else None
        self._tied = {slot.name: tuple(slot.names) for slot in parameters}
        self._buffers: list[tuple[Slot, Tensor]] = []
        self._install(parameters, buffers)
        self._other_places: list[tuple[Slot, int]] = []
        self.others = self._install_others(others)
        self._first_others = self.others.clone()

    @property
    def only_buffers(self) -> bool:
        """Whether nothing of the module is trained, so that buffers are all that is exchanged."""
        return not self.parameter_layers

    @property
    def trainable_gradient(self) -> Tensor:
        """The flat gradient of `trainable`."""
        return gradient_of(self.trainable)

    def views(self, flat: Tensor) -> list[Tensor]:
        """Return the layers' tensors as views of a flat vector in the order of `state`, or of rows [n, size]."""
        parts = zip(self.layers, self._strides, self._offsets, strict=True)
        count, step, at = flat.shape[:-1], flat.stride()[:-1], flat.storage_offset()
        return [
            flat.as_strided((*count, *layer.shape), (*step, *strides), at + start) for layer, strides, start in parts
        ]

    def flat(self, module: nn.Module) -> Tensor:
        """Return the values of another module of this architecture (on the CPU) as a vector like `state`."""
        parameters, buffers, _ = own_tensors(module)
        flat = torch.zeros(self.state.shape)
        for slot, view in zip(parameters + buffers, self.views(flat), strict=True):
            view.copy_(slot.tensor.detach())
        return flat.to(self.state.device)

    def exchanged(self, flat: Tensor) -> list[Tensor]:
        """Return the views of the exchanged layers: parameters, then buffers."""
        return self.views(flat)[: len(self.exchanged_layers)]

    def exchanged_parts(self, flat: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return the views of the parameters, which a codec encodes, and of the buffers that are sent unencoded."""
        views, count = self.exchanged(flat), len(self.parameter_layers)
        return views[:count], views[count:]

    def spectrum(self, flat: Tensor) -> list[float]:
        """Return the singular values of each compressible exchanged layer, in descending order per layer."""
        pairs = zip(self.exchanged_layers, self.exchanged(flat), strict=True)
        matrices = [view.reshape(layer.matrix_shape) for layer, view in pairs if layer.compressible]
        return torch.cat([torch.linalg.svdvals(matrix.cpu()) for matrix in matrices]).tolist() if matrices else []

    def names_of(self, layer: Layer) -> tuple[str, ...]:
        """Return all names of a layer in the module; there are several if parameters are tied."""
        return self._tied.get(layer.name, (layer.name,))

    def description(self) -> dict[str, Any]:
        """Return, JSON-able, where each tensor lies in `state` and `others`, by the module's names for it.

        A layer is torch.as_strided(state, shape, strides, offset), in entries; one of `others` begins at a byte.
        `buffers` names the layers that are no parameters; `frozen` has the digests of parameters that are in neither.
        """
        places = zip(self.layers, self._strides, self._offsets, strict=True)
        layers = [
            {"names": list(self.names_of(layer)), "shape": list(layer.shape), "strides": list(strides), "offset": start}
            for layer, strides, start in places
        ]
        others = [
            {
                "names": slot.names,
                "dtype": str(view.dtype).removeprefix("torch."),
                "shape": list(view.shape),
                "byte": start,
            }
            for slot, start in self._other_places
            for view in [slot.current()]
            if view is not None
        ]
        frozen = {name: digest_of(self.module.get_parameter(name)) for name in self.frozen}
        return {
            "numbers": self.state.numel(),
            "layers": layers,
            "others": others,
            "buffers": [layer.name for layer in self.layers[len(self.parameter_layers) :]],
            "frozen": frozen,
        }

    def part(self, prefix: str) -> slice:
        """Return the slice of a flat vector with the layers whose names begin with `prefix`; they must be adjacent."""
        found = [index for index, layer in enumerate(self.layers) if layer.name.startswith(prefix)]
        ends = [*self._offsets, self.state.numel()]
        if found != list(range(found[0], found[-1] + 1)):
            raise ValueError(f"layers {prefix}* are not adjacent")
        return slice(ends[found[0]], ends[found[-1] + 1])

    def zero_grad(self) -> None:
        """Set the gradient to zero in place, because the .grad tensors of the module are views of it."""
        self.gradient.zero_()

    def gather(self) -> None:
        """Copy buffers that the module has replaced by new tensors back into the flat vector.

        Raises RunFault naming the buffer if it has another shape or type, or is missing.
        """
        for slot, view in self._buffers:
            current = slot.current()
            if current is view:
                continue
            if current is None or current.shape != view.shape or current.is_complex() != view.is_complex():
                found = "nothing" if current is None else f"shape {list(current.shape)}"
                raise RunFault(f"the module has replaced a buffer of shape {list(view.shape)} by {found}: a buffer must"
                               " keep its shape and type", layer=slot.name)  # fmt: skip
            view.copy_(current)
            slot.install(view)

    def load(self, flat: Tensor) -> None:
        """Copy the values of a flat vector; buffers that the module has replaced are restored first."""
        for slot, view in self._buffers:
            if slot.current() is not view:
                slot.install(view)
        self.state.copy_(flat)

    def reset_others(self) -> None:
        """Set the buffers that are never exchanged to those of the new module, as in the global student."""
        self.others.copy_(self._first_others)

    def require_finite(self, flat: Tensor, what: str, round_index: int, client: int | None = None) -> None:
        """Raise RunFault naming the layer if a vector with the order of `state` contains NaN or infinity.

        `what` names the vector in the message.
        """
        # A sum is finite only if every term is finite. If the sum overflows, the terms are checked.
        if torch.isfinite(flat.sum()) or torch.isfinite(flat).all():
            return
        for layer, view in zip(self.layers, self.views(flat), strict=True):
            if not torch.isfinite(view).all():
                raise RunFault(f"the {what} is not finite", round=round_index, client=client, layer=layer.name)

    def _install(self, parameters: Sequence[Slot], buffers: Sequence[Slot]) -> None:
        views, gradients = self.views(self.state), self.views(self.gradient)
        for slot, view, gradient in zip(parameters, views, gradients, strict=False):
            view.copy_(slot.tensor.detach())
            slot.tensor.data = view
            slot.tensor.grad = gradient
        for slot, view in zip(buffers, views[len(parameters) :], strict=True):
            view.copy_(slot.tensor)
            self._keep(slot, view)

    def _install_others(self, others: Sequence[Slot]) -> Tensor:
        """Move the buffers of other types into one vector of bytes, each aligned to 64 bytes."""
        starts, size = [], 0
        for slot in others:
            starts.append(size)
            size += -(-slot.tensor.nbytes // 64) * 64
        room = torch.zeros(size, dtype=torch.uint8, device=self.state.device)
        self._other_places = list(zip(others, starts, strict=True))
        for slot, start in self._other_places:
            view = room[start : start + slot.tensor.nbytes].view(slot.tensor.dtype).view(slot.tensor.shape)
            view.copy_(slot.tensor)
            self._keep(slot, view)
        return room

    def _keep(self, slot: Slot, view: Tensor) -> None:
        slot.install(view)
        self._buffers.append((slot, view))


def _strides(tensor: Tensor) -> tuple[int, ...]:
    """Return the strides of a tensor in a flat vector: contiguous, or channels last if the tensor is."""
    formats: dict[int, Any] = {4: torch.channels_last, 5: torch.channels_last_3d}
    form = formats.get(tensor.dim())
    if form is not None and tensor.is_contiguous(memory_format=form) and not tensor.is_contiguous():
        return tuple(tensor.stride())
    return torch.empty(tensor.shape, device="meta").stride()
