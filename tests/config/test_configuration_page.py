"""docs/configuration.md has every key of the configuration with its default."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, get_args

from mpirun import REPOSITORY
from pydantic import BaseModel

from fedkd_mpi.config.schema import Config
from fedkd_mpi.config.sections import MethodConfig

PAGE = (REPOSITORY / "docs/configuration.md").read_text(encoding="utf-8")


def section_of(annotation: Any) -> type[BaseModel] | None:
    """Return the section that a field is, if it is one (or null)."""
    kinds = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type)]
    return next((kind for kind in kinds if issubclass(kind, BaseModel) and kind is not MethodConfig), None)


def text_of(value: Any) -> str:
    """Return a default as it is written on a command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, MethodConfig):
        return value.name
    return f"{value:g}" if isinstance(value, float) else str(value)


def keys(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield every dotted key and its default as the page writes it."""
    for name, field in section.model_fields.items():
        if inner := section_of(field.annotation):
            yield from keys(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", "required" if field.is_required() else f"`{text_of(field.default)}`"


def test_the_page_has_every_key_with_its_default_and_no_other():
    table = PAGE[PAGE.index("## All keys") : PAGE.index("## Keys of the models")]
    rows = re.findall(r"(?m)^\| `([\w.]+)` \| (\S+) \| .+ \|$", table)
    assert not set(rows) ^ set(keys(Config))
    assert len(rows) == len(set(rows))
