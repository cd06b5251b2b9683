"""Keys that belong to one model family or one data set: checked by pydantic before anything heavy is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedkd_mpi.errors import UserError
from fedkd_mpi.registry import nearest

Count = Annotated[int, Field(strict=True, ge=1)]


class Options(BaseModel):
    """The options of one kind of thing: frozen, unknown ones refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


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
        raise UserError("; ".join(_explain(fault, name, key, known) for fault in error.errors())) from None


def _explain(fault: Mapping[str, Any], name: str, key: str, known: list[str]) -> str:
    place = ".".join((key, *map(str, fault["loc"])))
    if fault["type"] == "extra_forbidden":
        near = nearest(str(fault["loc"][-1]), known)
        hint = f"did you mean {key}.{near}?" if near else f"keys of {name}: {', '.join(known)}"
        return f"unknown key {place}; {hint}"
    return f"{place}={fault['input']}: {fault['msg'].removeprefix('Value error, ')}"
