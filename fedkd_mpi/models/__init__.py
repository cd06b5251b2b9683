"""Teachers and students from one registry: a new family is one file, its options and one line in options.FAMILIES.

A model is an `nn.Module`. It is called with float32 [N, *input_shape], or with token ids int64 [N, L] if its input
shape is `Texts`, and returns an `Output`. Its attribute `hidden_sizes` contains the widths of `Output.hidden`, from
input to output. A user's model is named by its path "package.module:Class" and created as
`Class(input_shape, num_classes, **options)`; one that returns logits alone is adapted by models/plain.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedkd_mpi.common.options import check as check_options
from fedkd_mpi.common.registry import Kind, resolve, subclass_of
from fedkd_mpi.errors import UserError, one_line
from fedkd_mpi.models.options import FAMILIES
from fedkd_mpi.models.output import Output as Output

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Output", "build", "check"]

_PATHS = {name: family.path for name, family in FAMILIES.items()}


def check(name: str, options: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return the options of the model `name` with the defaults of its family, as plain YAML values; imports no torch.

    `key` is the section of the configuration ("teacher") that errors name. The options of a user's class are returned
    unchanged. Raises UserError for an unknown model, an unknown option or an invalid value.
    """
    if name not in FAMILIES and ":" in name:
        return dict(options)
    if name not in FAMILIES:
        resolve(name, _PATHS, f"{key}.name")  # raises UserError with the common message for unknown names
    return check_options(FAMILIES[name].options, options, name, key, ("name", "learning_rate", "features"))


def factory_of(name: str, key: str) -> Callable[..., nn.Module]:
    """Return the class or function that makes the model `name`; raises UserError naming the key."""
    from torch import nn

    from fedkd_mpi.models import plain

    module = subclass_of(nn.Module, "torch.nn.Module")
    function = Kind(plain.makes_models, "function that takes num_classes, or whose annotation says it returns one")
    found: Callable[..., nn.Module] = resolve(name, _PATHS, key, module, function)
    return found


def build(
    name: str,
    input_shape: tuple[int, ...],
    num_classes: int,
    options: Mapping[str, Any],
    key: str = "model",
    features: Sequence[str] | None = None,
) -> nn.Module:
    """Return the model `name` for inputs of `input_shape` (images: channels, height, width), initialised by torch.

    `features` names the layers whose outputs are the hidden features of a model that returns logits alone. Raises
    UserError as check() does, and if the model cannot be loaded or does not match the input.
    """
    options = check(name, options, key)
    from fedkd_mpi.models import plain

    factory = factory_of(name, f"{key}.name")
    try:
        bound = plain.arguments(factory, input_shape, num_classes, options)
    except TypeError as error:
        raise UserError(f"{key}: {name} does not accept these options: {error}") from None
    try:
        model = factory(*bound.args, **bound.kwargs)
        if hasattr(model, "hidden_sizes"):
            if features is not None:
                raise UserError(f"features: {name} has hidden_sizes, and so features of its own; remove the key")
            return model
        return plain.adapt(model, features or (), input_shape)
    except UserError as error:
        raise UserError(f"{key}: {error}") from None
    except Exception as error:
        if ":" not in name:
            raise
        raise UserError(f"{key}: {name}: {one_line(error)}") from error
