"""Modules that return logits alone, as torchvision's and timm's do, made to return an Output by forward hooks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fedkd_mpi.common.registry import nearest
from fedkd_mpi.errors import UserError
from fedkd_mpi.models.output import Output, Texts


def arguments(
    factory: Callable[..., nn.Module], input_shape: Any, num_classes: int, options: Mapping[str, Any]
) -> inspect.BoundArguments:
    """Return what a model's class or function is called with, as its signature asks.

    A parameter named `input_shape` or `num_classes` gets that value. A function that hands further keywords on, as
    those of torchvision and timm do, gets `num_classes` among them. A signature that begins with two other required
    parameters gets both by position. Raises TypeError where the signature does not take the options.
    """
    signature = inspect.signature(factory)
    given = {"input_shape": input_shape, "num_classes": num_classes}
    by_name = {name: value for name, value in given.items() if name in signature.parameters}
    if by_name or len(_required(signature, options)) < 2:
        if not isinstance(factory, type) and any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
            by_name["num_classes"] = num_classes
        return signature.bind(**by_name, **options)
    return signature.bind(input_shape, num_classes, **options)


def makes_models(found: Any) -> bool:
    """Return whether a function takes `num_classes`, or says that it returns a torch.nn.Module."""
    if isinstance(found, type) or not callable(found):
        return False
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):  # built-in functions have no signature
        return False
    returned = signature.return_annotation
    if isinstance(returned, str):  # written as text, by `from __future__ import annotations`
        returned = getattr(inspect.unwrap(found), "__globals__", {}).get(returned)
    return "num_classes" in signature.parameters or (isinstance(returned, type) and issubclass(returned, nn.Module))


def _required(signature: inspect.Signature, options: Mapping[str, Any]) -> list[str]:
    places = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [
        name
        for name, parameter in signature.parameters.items()
        if parameter.kind in places and parameter.default is parameter.empty and name not in options
    ]


class Features:
    """The outputs of named submodules in one forward pass, which become `Output.hidden`, from input to output."""

    def __init__(self, names: Sequence[str]):
        self.names = tuple(names)
        self._seen: dict[str, Tensor] = {}

    def collect(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        """Forward hook of a named submodule; of one that is called twice, the last output counts."""
        self._seen[name] = pooled(output, name)

    def output(self, module: nn.Module, inputs: Any, result: Any) -> Any:
        """Forward hook of the whole module: put logits and features into an Output."""
        seen, self._seen = self._seen, {}
        if isinstance(result, Output):
            raise UserError("features: the model returns an Output, which has hidden features of its own")
        logits = getattr(result, "logits", result)
        if not isinstance(logits, Tensor):
            return result  # refused by name before the first round
        if missing := [name for name in self.names if name not in seen]:
            raise UserError(f"features: the forward pass does not call {missing[0]}")
        return Output(logits, tuple(seen[name] for name in self.names))


def pooled(output: Any, name: str) -> Tensor:
    """Return a layer's output as [N, d]: the mean of [N, d, H, W] over places, of [N, L, d] over tokens.

    Of a tuple its first tensor counts. Raises UserError naming the layer for anything else.
    """
    tensor = output[0] if isinstance(output, (tuple, list)) and output else getattr(output, "last_hidden_state", output)
    if not isinstance(tensor, Tensor) or not 2 <= tensor.dim() <= 4:
        what = f"a tensor of shape {list(tensor.shape)}" if isinstance(tensor, Tensor) else type(tensor).__name__
        raise UserError(f"features: {name} returns {what}; a layer returns [N, d], [N, L, d] or [N, d, H, W]")
    return tensor if tensor.dim() == 2 else tensor.mean(1) if tensor.dim() == 3 else tensor.mean((2, 3))


def adapt(model: nn.Module, names: Sequence[str], input_shape: Any) -> nn.Module:
    """Make a module without `hidden_sizes` return an Output with the features of the layers named.

    Its parameters keep their names. Raises UserError for a task whose inputs are texts, an unknown layer, and a layer
    that gives no features of one sample each.
    """
    if isinstance(input_shape, Texts):
        raise UserError(
            "a model that reads texts returns fedkd_mpi.models.Output(logits, hidden, attention, mask) and has"
            " hidden_sizes, the widths of hidden"
        )
    layers = dict(model.named_modules())
    features = Features(names)
    for name in names:
        if not name or name not in layers:
            near = nearest(name, [known for known in layers if known])
            raise UserError(f"features: there is no layer {name}" + (f"; did you mean {near}?" if near else ""))
        layers[name].register_forward_hook(partial(features.collect, name))
    model.register_forward_hook(features.output)
    model.hidden_sizes = _widths(model, input_shape) if names else ()  # type: ignore[assignment]
    return model


def _widths(model: nn.Module, input_shape: Sequence[int]) -> tuple[int, ...]:
    """Return the widths of the features, from a forward pass that leaves the module as it was."""
    training = model.training
    first = next(model.parameters(), torch.zeros(()))
    model.eval()
    try:
        with torch.no_grad():
            output = model(torch.zeros(2, *input_shape, device=first.device))
    finally:
        model.train(training)
    if not isinstance(output, Output):
        raise UserError(f"the network returns a {type(output).__name__}; it returns logits, or an Output")
    for name, hidden in zip(names_of(model), output.hidden, strict=True):
        if hidden.shape[0] != 2:
            raise UserError(f"features: {name} returns {hidden.shape[0]} rows for 2 samples")
    return tuple(int(hidden.shape[-1]) for hidden in output.hidden)


def is_adapted(model: nn.Module) -> bool:
    """Return whether a model returns logits by itself, and its Output is the work of adapt()."""
    return _features(model) is not None


def names_of(model: nn.Module) -> tuple[str, ...]:
    """Return the layers whose outputs are an adapted model's hidden features; empty for a model of its own kind."""
    found = _features(model)
    return found.names if found else ()


def lacks_features(model: nn.Module) -> bool:
    """Return whether a model returns logits alone and no layers are named as its features."""
    return is_adapted(model) and not names_of(model)


def _features(model: nn.Module) -> Features | None:
    hooks = (getattr(hook, "__self__", None) for hook in model._forward_hooks.values())
    return next((hook for hook in hooks if isinstance(hook, Features)), None)
