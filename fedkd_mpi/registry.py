"""Names in a configuration -> objects: a built-in name, or a user's own as package.module:Name."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from fedkd_mpi.errors import UserError


def resolve(name: str, known: Mapping[str, str], key: str) -> Any:
    """Return the object that `name` stands for: known[name], or the object of a dotted path "package.module:Name".

    Raises UserError naming the configuration key, with the nearest known name.
    """
    path = known.get(name, name)
    module, colon, attribute = path.partition(":")
    if not colon:
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


def nearest(word: str, known: Sequence[str]) -> str | None:
    """Return the known word most like a mistyped one (a key also by its last part), or None."""
    match = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if not match:
        last = {name.rpartition(".")[2]: name for name in known}
        match = [
            last[near] for near in difflib.get_close_matches(word.rpartition(".")[2], list(last), n=1, cutoff=0.75)
        ]
    return match[0] if match else None
