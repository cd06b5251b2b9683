"""The tensors of a module: which are trained, which are exchanged, and which are not supported."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from fedkd_mpi.errors import UserError


@dataclass
class Slot:
    """A tensor of a module and all its owners; there are several if modules share it.

    `owners` are (module, name in that module); `names` are the full names, of which the first identifies the tensor.
    """

    tensor: Tensor
    names: list[str] = field(default_factory=list)
    owners: list[tuple[nn.Module, str]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The first name."""
        return self.names[0]

    def current(self) -> Tensor | None:
        """Return the current buffer of the first owner."""
        module, name = self.owners[0]
        return module._buffers.get(name)

    def install(self, tensor: Tensor) -> None:
        """Set the buffer of all owners."""
        for module, name in self.owners:
            module._buffers[name] = tensor


def own_tensors(module: nn.Module) -> tuple[list[Slot], list[Slot], list[Slot]]:
    """Return the trainable parameters, the float32 buffers and all other buffers of a module, each tensor once.

    Empty tensors are omitted.
    """
    parameters = [slot for slot in _slots(module, "_parameters") if slot.tensor.requires_grad and slot.tensor.numel()]
    buffers = [slot for slot in _slots(module, "_buffers") if slot.tensor.numel()]
    floats = [slot for slot in buffers if slot.tensor.dtype == torch.float32]
    return parameters, floats, [slot for slot in buffers if slot.tensor.dtype != torch.float32]


def frozen_names(module: nn.Module) -> list[str]:
    """Return the names of parameters that are not trained."""
    return [slot.name for slot in _slots(module, "_parameters") if not slot.tensor.requires_grad]


def count_numbers(module: nn.Module) -> int:
    """Return how many numbers an exchange of the module would send; the module may be on the device "meta".

    Raises UserError as require_plain() does.
    """
    require_plain(module, meta=True)
    parameters, buffers, _ = own_tensors(module)
    return sum(slot.tensor.numel() for slot in parameters + buffers)


def require_plain(module: nn.Module, *, exchanged: bool = False, meta: bool = False) -> None:
    """Raise UserError naming the tensor if a parameter or buffer of a module cannot be exchanged or averaged.

    `exchanged`: its buffers are exchanged; `meta`: the module may be on the device "meta".
    """
    named = [*_slots(module, "_parameters"), *_slots(module, "_buffers")]
    for slot in named:
        what = "parameter" if isinstance(slot.tensor, nn.Parameter) else "buffer"
        if problem := _problem(slot.tensor, what, meta):
            raise UserError(f"{what} {slot.name} {problem}")
    if not meta:
        _require_no_overlap(named)
    for slot in _slots(module, "_buffers"):
        if any(isinstance(owner, torch.jit.ScriptModule) for owner, _ in slot.owners):
            raise UserError(f"buffer {slot.name} is in a TorchScript module: use the Python module that it was made of")
    if exchanged:
        for slot in _slots(module, "_buffers"):
            if _is_power_iterate(slot):
                raise UserError(f"buffer {slot.name} is a power iterate of a spectral norm, which cannot be averaged:"
                                " use another norm, or server.buffers=local")  # fmt: skip


def _is_power_iterate(slot: Slot) -> bool:
    """Return whether a buffer is one of torch's spectral norms, new or old (weight_u and weight_v of weight_orig)."""
    owner, name = slot.owners[0]
    if isinstance(owner, parametrizations._SpectralNorm):
        return True
    return name.endswith(("_u", "_v")) and f"{name[:-2]}_orig" in owner._parameters


def _problem(tensor: Tensor, what: str, meta: bool) -> str | None:
    """Return why a tensor cannot be part of a flat vector, or None if it can."""
    if isinstance(tensor, (nn.parameter.UninitializedParameter, nn.parameter.UninitializedBuffer)):
        return "has no size yet: a lazy layer must be given its input size"
    if tensor.layout != torch.strided or tensor.is_quantized:
        return (
            f"is {tensor.layout if tensor.layout != torch.strided else 'quantised'}: only dense tensors are exchanged"
        )
    if tensor.is_meta and not meta:
        return "is on the device meta, and has no values"
    kind = str(tensor.dtype).removeprefix("torch.")
    if what == "parameter" and not tensor.requires_grad:
        return None
    if tensor.is_complex():
        return f"is {kind}: numbers are exchanged as float32; hold real and imaginary part as two {what}s"
    if (tensor.is_floating_point() or what == "parameter") and tensor.dtype != torch.float32:
        return f"is {kind}: numbers are exchanged as float32; convert the module with .float()"
    return None


def _require_no_overlap(slots: list[Slot]) -> None:
    """Raise UserError if different tensors share memory: as parts of a flat vector they would no longer do so."""
    spans: dict[int, list[tuple[int, int, str]]] = {}
    for slot in slots:
        tensor = slot.tensor
        if not tensor.numel():
            continue
        start = int(tensor.storage_offset()) * tensor.itemsize
        last = int(sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True)))
        span = start, start + (last + 1) * tensor.itemsize, slot.name
        for low, high, other in spans.setdefault(tensor.untyped_storage().data_ptr(), []):
            if span[0] < high and low < span[1]:
                raise UserError(
                    f"{slot.name} and {other} are different tensors in the same memory: tie them by assigning one"
                    " parameter to both, or copy one with .clone()"
                )
        spans[tensor.untyped_storage().data_ptr()].append(span)


def _slots(module: nn.Module, kind: str) -> Iterator[Slot]:
    """Yield every tensor of a kind ("_parameters" or "_buffers") once, in the order of named_parameters()."""
    found: dict[int, Slot] = {}
    for prefix, owner in module.named_modules(remove_duplicate=False):
        for name, tensor in getattr(owner, kind).items():
            if tensor is not None:
                slot = found.setdefault(id(tensor), Slot(tensor))
                slot.names.append(f"{prefix}.{name}" if prefix else name)
                slot.owners.append((owner, name))
    yield from found.values()
