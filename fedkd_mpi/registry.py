"""Names in a configuration -> objects: a built-in name, or a user's own as package.module:Name."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from fedkd_mpi.errors import UserError


def resolve(name: str, known: Mapping[str, str], key: str) -> Any:
    """Return the object that `name` stands for: known[name], or the object of a dotted path "package.module:Name".

    Raises UserError naming the configuration key, with the nearest known name.
    """
    path = known.get(name, name)
    module, colon, attribute = path.partition(":")
    if not colon:
        from fedkd_mpi.config import nearest

        near = nearest(name, list(known))
        hint = f"did you mean {near}?" if near else f"known are {', '.join(known)}."
        raise UserError(f"{key}={name} is unknown; {hint} Your own is named package.module:Name")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError, TypeError, SyntaxError) as error:
        raise UserError(f"{key}={name} cannot be loaded: {error}") from None
    if not callable(found):
        raise UserError(f"{key}={name} is a {type(found).__name__}, nothing that can be called")
    return found
