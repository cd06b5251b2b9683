"""A module whose tensors are views of one flat vector: copied, subtracted and optimised in single operations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedkd_mpi.errors import RunFault
from fedkd_mpi.wire import Layer

ALIGNMENT = 16  # float32 entries: each tensor starts on a 64-byte boundary, wherever the flat vector is


class Network:
    """A module with its trainable parameters, then its floating-point buffers, in the flat vector `state`.

    `layers` names them in order; frozen parameters are in neither. `trainable` is the part of `state` that an optimiser
    moves, with the flat gradient as its `.grad`. Integer buffers (BatchNorm's batch counter, which plays no part with a
    fixed momentum) stay as they are.
    """

    def __init__(self, module: nn.Module, device: str, *, exchange_buffers: bool = True):
        # Convolutions and poolings are faster with channels last: an order in memory, the shapes stay.
        self.module = module.to(device, memory_format=torch.channels_last)
        parameters, buffers = _tensors(module)
        self.layers = [Layer(name, tuple(tensor.shape), tensor.dim() >= 2) for name, tensor in parameters]
        self.layers += [Layer(name, tuple(tensor.shape), False) for name, tensor in buffers]
        self._strides = [tensor.stride() for _, tensor in parameters + buffers]
        self._offsets, size = [], 0
        for layer in self.layers:
            self._offsets.append(size)
            size += -(-layer.numel // ALIGNMENT) * ALIGNMENT
        first_buffer = self._offsets[len(parameters)] if buffers else size
        self.state = torch.zeros(size, device=device)
        self.gradient = torch.zeros_like(self.state)
        self.trainable = nn.Parameter(self.state[:first_buffer])
        self.trainable.grad = self.gradient[:first_buffer]
        self._install(parameters, buffers)
        exchanged = len(self.layers) if exchange_buffers else len(parameters)
        self.exchanged_layers = self.layers[:exchanged]
        self.local_buffers = self.state[first_buffer:] if not exchange_buffers and buffers else None

    def views(self, flat: Tensor) -> list[Tensor]:
        """Return the layers' tensors as views of a flat vector laid out as `state`, or of rows of them [n, size]."""
        places = zip(self.layers, self._strides, self._offsets, strict=True)
        count, step, at = flat.shape[:-1], flat.stride()[:-1], flat.storage_offset()
        return [
            flat.as_strided((*count, *layer.shape), (*step, *strides), at + start) for layer, strides, start in places
        ]

    def flat(self, module: nn.Module) -> Tensor:
        """Return the values of another module of this architecture, on the CPU, laid out and placed as `state`."""
        parameters, buffers = _tensors(module)
        flat = torch.zeros(self.state.shape)
        for (_, tensor), view in zip(parameters + buffers, self.views(flat), strict=True):
            view.copy_(tensor.detach())
        return flat.to(self.state.device)

    def exchanged(self, flat: Tensor) -> list[Tensor]:
        """Return the views of those layers that travel."""
        return self.views(flat)[: len(self.exchanged_layers)]

    def spectrum(self, flat: Tensor) -> list[float]:
        """Return the singular values, falling, of one compressible layer after another of those that travel."""
        pairs = zip(self.exchanged_layers, self.exchanged(flat), strict=True)
        matrices = [view.reshape(layer.matrix_shape) for layer, view in pairs if layer.compressible]
        return torch.cat([torch.linalg.svdvals(matrix.cpu()) for matrix in matrices]).tolist() if matrices else []

    def zero_grad(self) -> None:
        """Set the gradient to zero, in place: the modules' .grad tensors are views of it."""
        self.gradient.zero_()

    def require_finite(self, flat: Tensor, what: str, round_index: int, client: int | None = None) -> None:
        """Raise RunFault, naming the layer, if a vector laid out as `state` holds NaN or infinity."""
        # a sum is finite only if every term is; one that overflows has them looked at
        if torch.isfinite(flat.sum()) or torch.isfinite(flat).all():
            return
        for layer, view in zip(self.layers, self.views(flat), strict=True):
            if not torch.isfinite(view).all():
                raise RunFault(f"the {what} is not finite", round=round_index, client=client, layer=layer.name)

    def _install(self, parameters: Sequence[tuple[str, Tensor]], buffers: Sequence[tuple[str, Tensor]]) -> None:
        views, gradients = self.views(self.state), self.views(self.gradient)
        for (_, parameter), view, gradient in zip(parameters, views, gradients, strict=False):
            view.copy_(parameter.detach())
            parameter.data = view
            parameter.grad = gradient
        for (name, buffer), view in zip(buffers, views[len(parameters) :], strict=True):
            view.copy_(buffer)
            owner, _, last = name.rpartition(".")
            self.module.get_submodule(owner)._buffers[last] = view


def _tensors(module: nn.Module) -> tuple[list[tuple[str, Tensor]], list[tuple[str, Tensor]]]:
    """The trainable parameters of a module and its floating-point buffers, by name."""
    parameters = [(name, tensor) for name, tensor in module.named_parameters() if tensor.requires_grad]
    return parameters, [(name, tensor) for name, tensor in module.named_buffers() if tensor.is_floating_point()]
