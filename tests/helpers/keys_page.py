"""Writes docs/keys.md, every key of the configuration, from its schema: python tests/helpers/keys_page.py."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from fedkd_mpi.config.explain import Schema, allowed, schema, section_of

PAGE = Path(__file__).parents[2] / "docs" / "keys.md"
INTRODUCTION = """\
# All keys

<!-- Written by tests/helpers/keys_page.py from the configuration's schema; a test compares. -->

A default is what holds where a configuration does not say otherwise; presets say otherwise for many keys. Keys that
belong to another method, codec, optimiser or partition are refused. `fedkd run --print-config` prints the same for a
preset or for your own file. [Configuration](configuration.md) says how values are read, which presets and data sets
there are, and what the paper leaves open.
"""
SECTIONS = {"teacher": "teacher, student and each entry of teachers"}
SAME = {"student", "teachers"}


def text() -> str:
    """Return the page."""
    whole = schema()
    parts = whole["$defs"]
    plain, sections = {}, {}
    for name, key in whole["properties"].items():
        found = section_of(key, parts)
        (sections if "properties" in found and name not in SAME else plain)[name] = key
    required = whole.get("required", ())
    pieces = [INTRODUCTION, "## Keys without a section\n", _table(plain, "", required)]
    for name, key in sections.items():
        found = section_of(key, parts)
        pieces += [f"## `{name}`\n"]
        if "description" in key:
            pieces += [_prose(key["description"], "{}.\n")]
        if name in SECTIONS:
            pieces += [f"The keys of {SECTIONS[name]}.\n"]
        pieces += [_table(found["properties"], f"{name}.", found.get("required", ()))]
        for rule in found.get("allOf", ()):
            own = rule["then"]["properties"]
            title = rule["if"]["properties"]["name"]["const"]
            if own:
                pieces += [f"### `{name}.name={title}`\n", _table(own, f"{name}.", ())]
    return "\n".join(pieces)


def _table(keys: Mapping[str, Schema], prefix: str, required: object) -> str:
    return "\n".join(_rows(keys, prefix, required)) + "\n"


def _rows(keys: Mapping[str, Schema], prefix: str, required: object) -> Iterator[str]:
    yield "| key | default | values | meaning |"
    yield "|---|---|---|---|"
    assert isinstance(required, list | tuple)
    for name, key in keys.items():
        default = f"`{json.dumps(key['default'])}`" if "default" in key else "required" if name in required else ""
        cells = (f"`{prefix}{name}`", default, _cell(allowed(key)), _prose(key.get("description", "")))
        yield f"| {' | '.join(cells)} |"


def _cell(words: str) -> str:
    return words.replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;").replace(">", "&gt;")


def _prose(words: str, form: str = "{}") -> str:
    """Return a description as Markdown, where pages that it names are links."""
    return form.format(re.sub(r"docs/([\w-]+\.md)", r"[\1](\1)", _cell(words)))


if __name__ == "__main__":
    PAGE.write_text(text(), encoding="utf-8")
