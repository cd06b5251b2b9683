"""Validation by pydantic of the keys of one model family or one data set, before heavy imports."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedkd_mpi.common.registry import nearest
from fedkd_mpi.errors import UserError, shown

Model = TypeVar("Model", bound=BaseModel)
WIDE = 10**6  # units of a layer
Count = Annotated[int, Field(ge=1, le=WIDE)]


class Strict(BaseModel):
    """What all of a configuration is: nothing in it changes, and no value is taken for one of another type."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)


class Options(Strict):
    """The options of one model family or data set: frozen; unknown options are refused."""

    model_config = ConfigDict(extra="forbid")


def check(
    kind: type[Options], options: Mapping[str, Any], name: str, key: str, others: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the options of `name` with their defaults, as plain YAML values.

    `key` is the section of the configuration that errors name, `others` are the other keys of the section. Raises
    UserError for an unknown option or an invalid value.
    """
    known = [*kind.model_fields, *others]
    hint = Hint(known, f"keys of {name}: {', '.join(known)}", f"{key}.", {"lr": ["learning_rate"]})
    return validated(kind, dict(options), hint, section=key).model_dump(mode="json")


def own_options(part: Any, given: Mapping[str, Any], name: str, key: str) -> dict[str, Any]:
    """Return the options given to a user's own part, checked by the pydantic model `Options` of its class.

    Without such a model the options are returned as they are. Raises UserError as check() does.
    """
    kind = getattr(part, "Options", None)
    if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return dict(given)
    known = list(kind.model_fields)
    hint = Hint(known, f"keys of {name}: {', '.join(known)}", f"{key}.")
    return dict(validated(kind, dict(given), hint, section=key))


class Hint(NamedTuple):
    """What is said of an unknown key: the nearest of the known ones, behind a prefix, or else something else.

    `usual` are the keys that are meant by the last part of a key, under which they are known elsewhere.
    """

    known: Sequence[str]
    otherwise: str
    prefix: str = ""
    usual: Mapping[str, Sequence[str]] = {}

    def __call__(self, key: str) -> str:
        last = key.rpartition(".")[2]
        meant = [name for name in self.usual.get(last, ()) if name in self.known]
        meant = meant or [name for name in self.known if name.rpartition(".")[2] == last]
        if not 1 <= len(meant) <= 3:
            meant = [near for near in [nearest(key, self.known)] if near]
        return f"did you mean {' and '.join(self.prefix + name for name in meant)}?" if meant else self.otherwise


def validated(kind: type[Model], tree: Mapping[str, Any], hint: Hint, *, section: str = "", where: str = "") -> Model:
    """Return the model of a nested mapping.

    Raises UserError with one line that begins with `where` and names every wrong key, in `section`.
    """
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise UserError(where + _explain(error, hint, section)) from None


WORDS = {
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be text (quote it)",
    "path_type": "must be text (quote it)",
    "list_type": "must be a list",
    "dict_type": "must be a section of keys and values",
    "model_type": "must be a section of keys and values",
    "finite_number": "must be a finite number",
}
TOLD = 5  # errors that are listed; with more, the first one usually causes the others


def _explain(error: ValidationError, unknown: Hint, section: str) -> str:
    """Return one line with the error of every key; `unknown` returns a hint for an unknown key."""
    lines: dict[str, str] = {}
    for fault in error.errors(include_url=False):
        location = [str(part) for part in fault["loc"]]
        if location and fault["type"] != "extra_forbidden" and re.match(r"(constrained-)?int$|literal\[", location[-1]):
            location.pop()  # for a union of types, pydantic appends the type that it tried
        key = shown(".".join([section, *location] if section else location))
        line, joint = _line(fault, key, unknown, location), " or "
        lines[key] = f"{lines[key]}{joint}{line.partition(': ')[2]}" if key in lines and key else line
    found = list(dict.fromkeys(lines.values()))
    more = f"; and {len(found) - TOLD} more" if len(found) > TOLD else ""
    return "; ".join(found[:TOLD]) + more


def _line(fault: Mapping[str, Any], key: str, unknown: Hint, location: list[str]) -> str:
    if fault["type"] == "extra_forbidden":
        return f"unknown key {key}; {unknown('.'.join(location))}"
    if fault["type"] == "missing":
        return f"{key} is missing"
    words = WORDS.get(fault["type"], fault["msg"].removeprefix("Value error, ").replace("Input should be", "must be"))
    words = re.sub(r"[0-9]{20,}", lambda digits: f"{float(digits[0]):g}", words)
    own = fault["type"] == "value_error" and isinstance(fault["input"], Mapping)  # a section's message names its keys
    if own and key and not location:  # such a message names the keys without the section
        return f"{key}: {words}"
    return words if own or not key else f"{key}={shown(fault['input'])}: {words}"
