"""Resolves names in a configuration to objects: a built-in name, or a user's object as package.module:Name."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from fedkd_mpi.errors import UserError, one_line, shown


class Kind(NamedTuple):
    """A requirement that an object must meet before it is called: a test, and its description for messages."""

    fits: Callable[[Any], bool]
    words: str


def function_of(*names: str) -> Kind:
    """Return the kind of functions whose first parameters have these names."""
    return Kind(lambda found: _first(found, len(names)) == names, f"function whose parameters begin {', '.join(names)}")


def subclass_of(base: type, words: str) -> Kind:
    """Return the kind of classes that derive from `base`."""
    return Kind(lambda found: isinstance(found, type) and issubclass(found, base), words)


def class_with(*methods: str) -> Kind:
    """Return the kind of classes that have all of these methods."""
    return Kind(
        lambda found: isinstance(found, type) and all(callable(getattr(found, name, None)) for name in methods),
        f"class with {', '.join(methods)}",
    )


def resolve(name: str, known: Mapping[str, str], key: str, *kinds: Kind) -> Any:
    """Return the object of a name: known[name], or the object of a dotted path "package.module:Name".

    A name may come from a log or a configuration of another person: an object that is not of one of the `kinds` is
    refused and never called. Raises UserError naming the configuration key and the nearest known name.
    """
    require_known(name, known, key)
    module, _, attribute = known.get(name, name).partition(":")
    if not all(part.isidentifier() for part in module.split(".")):
        raise UserError(f"{key}={name} cannot be loaded: name it as package.module:Name")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{key}={name} cannot be loaded: {error}") from None
    except Exception as error:  # whatever the module raises while it is imported
        raise UserError(f"{key}={name} cannot be loaded: {one_line(error)}") from error
    if not any(kind.fits(found) for kind in kinds):
        raise UserError(f"{key}={name} is not a {' or '.join(kind.words for kind in kinds)} (docs/extending.md)")
    return found


def require_known(name: str, known: Collection[str], key: str) -> None:
    """Raise UserError naming the key and the nearest known name if `name` is neither known nor a dotted path."""
    if name in known or ":" in name:
        return
    if not known:
        raise UserError(f"{key}={shown(name)} must name your own, as package.module:Name")
    near = nearest(name, list(known))
    hint = f"did you mean {near}?" if near else f"known are {', '.join(known)}."
    raise UserError(f"{key}={shown(name)} is unknown; {hint} Name an own one as package.module:Name")


def known_or_own(name: str, known: Sequence[str]) -> str:
    """Return a name that is known or a dotted path; raises ValueError listing the known ones if it is neither."""
    if name not in known and ":" not in name:
        *others, last = (f"'{one}'" for one in known)
        listed = f"{', '.join(others)} or {last}" if others else last
        raise ValueError(f"must be {listed}, or package.module:Name")
    return name


def nearest(word: str, known: Sequence[str]) -> str | None:
    """Return the known word most similar to a mistyped one, or None; keys are also compared by their last part."""
    match = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if not match:
        last = {name.rpartition(".")[2]: name for name in known}
        match = [
            last[near] for near in difflib.get_close_matches(word.rpartition(".")[2], list(last), n=1, cutoff=0.75)
        ]
    return match[0] if match else None


def _first(found: Any, count: int) -> tuple[str, ...] | None:
    """Return the names of the first `count` parameters of a function, None for other objects."""
    if isinstance(found, type) or not callable(found):
        return None
    try:
        return tuple(inspect.signature(found).parameters)[:count]
    except (TypeError, ValueError):  # built-in functions have no signature
        return None
