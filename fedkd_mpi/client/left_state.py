"""State that a network keeps outside of its parameters and buffers, which would pass from client to client."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedkd_mpi.errors import UserError

NUMBERS = (bool, int, float)
OWN = frozenset(nn.Module().__dict__)  # the attributes of every module
Tensors = dict[str, tuple[nn.Module, str, Tensor | None]]
REMEDY = "a process trains many clients with it: keep it with register_buffer()"


def require_none(model: nn.Module, tensors: Tensors, forward: Callable[[], Any], restore: Callable[[], None]) -> None:
    """Raise UserError naming the attribute if forward passes in training leave state in a network.

    Refused are parameters and buffers that are made or replaced, frozen parameters and numbers that change, and all
    else that changes, such as tensors, if a second pass then gives another output. `tensors` is tensors_of(model)
    before its first forward pass. `forward` calls the network with the same random numbers each time, `restore` resets
    its parameters and buffers.
    """
    before = _attributes(model)
    first = _result(forward())
    _require_same_tensors(model, tensors)
    changed = [name for name, value in _attributes(model).items() if before.get(name) != value]
    if not changed:
        return
    restore()
    second = _result(forward())
    for name in changed:  # a number or a frozen parameter is no cache
        if isinstance(before.get(name), NUMBERS) or name in tensors:
            raise UserError(f"{name} changes in a forward pass, but is no buffer; {REMEDY}")
    if first != second:
        what = f"{changed[0]} changes in a forward pass, and the next output with it"
        raise UserError(f"{what}, but is no buffer; {REMEDY}")


def tensors_of(model: nn.Module) -> Tensors:
    """Return owner, kind and, of parameters, the tensor of all parameters and buffers, by name."""
    found: Tensors = {}
    for prefix, module in _modules(model):
        found |= {f"{prefix}{name}": (module, "parameter", tensor) for name, tensor in module._parameters.items()}
        found |= {f"{prefix}{name}": (module, "buffer", None) for name in module._buffers}
    return found


def _require_same_tensors(model: nn.Module, before: Tensors) -> None:
    after = tensors_of(model)
    for name in [*after, *before]:
        kind = (after.get(name) or before[name])[1]
        if name not in before or name not in after or after[name][2] is not before[name][2]:
            did = "makes" if name not in before else "removes" if name not in after else "replaces"
            raise UserError(
                f"a forward pass {did} the {kind} {name}: make it in __init__ and change its values in place"
            )


def _attributes(model: nn.Module) -> dict[str, Any]:
    """Return the values, in a form to compare, of what modules hold beside trained parameters and buffers, by name."""
    found = {}
    for prefix, module in _modules(model):
        for name, value in vars(module).items():
            if name not in OWN:
                found[f"{prefix}{name}"] = _frozen(value)
        for name, parameter in module._parameters.items():
            if parameter is not None and not parameter.requires_grad:
                found[f"{prefix}{name}"] = _frozen(parameter)
    return found


def _modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    pairs = ((f"{name}." if name else "", module) for name, module in model.named_modules())
    return [(prefix, module) for prefix, module in pairs if not isinstance(module, torch.jit.ScriptModule)]


def _frozen(value: Any, depth: int = 0) -> Any:
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_meta or value.is_quantized:
            return id(value)
        dense = value.detach().cpu().contiguous().reshape(-1)
        return str(value.dtype), tuple(value.shape), dense.view(torch.uint8).numpy().tobytes()
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, (*NUMBERS, str, bytes, type(None))):
        return value
    if depth < 4 and isinstance(value, list | tuple | set | frozenset):
        return type(value).__name__, tuple(_frozen(part, depth + 1) for part in value)
    if depth < 4 and isinstance(value, dict):
        return tuple((str(key), _frozen(part, depth + 1)) for key, part in value.items())
    return None  # not compared


def _result(output: Any) -> Any:
    return _frozen(getattr(output, "logits", output))
