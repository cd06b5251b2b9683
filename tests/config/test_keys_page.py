"""docs/keys.md is what the configuration's schema says, and the schema explains every key."""

from __future__ import annotations

from collections.abc import Iterator

import keys_page

from fedkd_mpi.config.explain import Schema, schema


def keys(part: Schema, path: str) -> Iterator[tuple[str, Schema]]:
    """Yield the path of every key in a schema and what the schema says of it."""
    for name, key in part.get("properties", {}).items():
        yield f"{path}.{name}", key
    for rule in part.get("allOf", ()):
        yield from keys(rule["then"], f"{path}[{rule['if']['properties']['name']['const']}]")


def test_the_page_is_the_one_that_the_schema_gives():
    assert keys_page.PAGE.read_text(encoding="utf-8") == keys_page.text(), "python tests/helpers/keys_page.py writes it"


def test_every_key_is_explained():
    whole = schema()
    parts = {"": whole, **whole["$defs"]}
    silent = [path for part, tree in parts.items() for path, key in keys(tree, part) if not key.get("description")]
    sections = {f".{name}" for name, key in whole["properties"].items() if "$ref" in key}
    assert not set(silent) - sections
