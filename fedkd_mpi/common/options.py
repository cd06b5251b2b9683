"""Keys that belong to one model family or one data set: checked by pydantic before anything heavy is loaded."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedkd_mpi.common.registry import nearest
from fedkd_mpi.config.sections import STRICT, WIDE
from fedkd_mpi.errors import UserError, shown

Count = Annotated[int, Field(ge=1, le=WIDE)]


class Options(BaseModel):
    """The options of one kind of thing: frozen, unknown ones refused."""

    model_config = ConfigDict(extra="forbid", **STRICT)


def check(
    kind: type[Options], options: Mapping[str, Any], name: str, key: str, others: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the options of `name` with their defaults filled in, as plain YAML values.

    `key` is the section of the configuration that errors are to name, `others` its keys beside these. Raises UserError
    for an unknown option or a wrong value.
    """
    try:
        return kind.model_validate(dict(options)).model_dump(mode="json")
    except ValidationError as error:
        known = [*others, *kind.model_fields]

        def unknown(place: str) -> str:
            near = nearest(place, known)
            return f"did you mean {key}.{near}?" if near else f"keys of {name}: {', '.join(known)}"

        raise UserError(explain(error, unknown, key)) from None


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
TOLD = 5  # mistakes; with more, the first is mostly the reason of the others


def explain(error: ValidationError, unknown: Callable[[str], str], section: str = "") -> str:
    """Return in a line what is wrong with every key; `unknown` says what a key that there is not may have meant."""
    lines: dict[str, str] = {}
    for fault in error.errors(include_url=False):
        place = [str(part) for part in fault["loc"]]
        if place and fault["type"] != "extra_forbidden" and re.match(r"(constrained-)?int$|literal\[", place[-1]):
            place.pop()  # where a key has one type or another, pydantic adds which it tried
        key = shown(".".join([section, *place] if section else place))
        line, joint = _line(fault, key, unknown, place), " or "
        lines[key] = f"{lines[key]}{joint}{line.partition(': ')[2]}" if key in lines and key else line
    told = list(dict.fromkeys(lines.values()))
    more = f"; and {len(told) - TOLD} more" if len(told) > TOLD else ""
    return "; ".join(told[:TOLD]) + more


def _line(fault: Mapping[str, Any], key: str, unknown: Callable[[str], str], place: list[str]) -> str:
    if fault["type"] == "extra_forbidden":
        return f"unknown key {key}; {unknown('.'.join(place))}"
    if fault["type"] == "missing":
        return f"{key} is missing"
    words = WORDS.get(fault["type"], fault["msg"].removeprefix("Value error, ").replace("Input should be", "must be"))
    words = re.sub(r"[0-9]{20,}", lambda digits: f"{float(digits[0]):g}", words)
    own = fault["type"] == "value_error" and isinstance(fault["input"], Mapping)  # of a section, and names its keys
    if own and key and not place:  # a section's own message names its keys without the section
        return f"{key}: {words}"
    return words if own or not key else f"{key}={shown(fault['input'])}: {words}"
