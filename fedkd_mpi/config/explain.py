"""A configuration with its keys explained: as commented YAML, and as a JSON schema for editors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from fedkd_mpi.common import yaml_loader
from fedkd_mpi.config import pairs
from fedkd_mpi.config.codecs import CODECS
from fedkd_mpi.config.methods import METHODS
from fedkd_mpi.config.schema import Config
from fedkd_mpi.config.training import SCHEDULES
from fedkd_mpi.datasets import LOADERS
from fedkd_mpi.datasets.options import OPTIONS
from fedkd_mpi.datasets.own_options import OWN
from fedkd_mpi.errors import plain
from fedkd_mpi.models.options import FAMILIES

Schema = dict[str, Any]
KINDS = {"integer": "whole number", "number": "number", "boolean": "true or false", "null": "null"}


class _Untitled(GenerateJsonSchema):
    """Leaves out titles, which would repeat the keys."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def schema() -> Schema:
    """Return the JSON schema (draft 7) of a configuration file, with the options of every model and data set."""
    found = Config.model_json_schema(schema_generator=_Untitled)
    parts = found["$defs"]
    own: dict[str, Mapping[str, type[BaseModel]]] = {
        "NetworkConfig": {name: family.options for name, family in FAMILIES.items()},
        "DataConfig": {**OPTIONS, **OWN},
    }
    for section, kinds in own.items():
        parts[section]["allOf"] = [
            {
                "if": {"properties": {"name": {"const": name}}, "required": ["name"]},
                "then": {"properties": _properties(kind, parts)},
            }
            for name, kind in kinds.items()
        ]
    for properties, key, known in (
        (parts["TaskConfig"]["properties"], "name", pairs.TASKS),
        (parts["DataConfig"]["properties"], "name", LOADERS),
        (parts["NetworkConfig"]["properties"], "name", FAMILIES),
        (parts["CompressionConfig"]["properties"], "codec", CODECS),
        (parts["MethodConfig"]["properties"], "name", METHODS),
        (parts["ScheduleConfig"]["properties"], "name", SCHEDULES),
    ):
        rest = {name: value for name, value in properties[key].items() if name not in ("pattern", "type")}
        properties[key] = {**rest, "anyOf": [{"enum": list(known)}, {"type": "string", "pattern": ":"}]}
    for section in ("MethodConfig", "TaskConfig"):  # a name stands for the whole section
        parts[section] = {"anyOf": [parts[section]["properties"]["name"], parts[section]]}
    time_limit = found["properties"]["time_limit"]
    time_limit["anyOf"].append({"type": "string", "pattern": "^([0-9]{1,4}-)?[0-9]{1,6}:[0-5][0-9]:[0-5][0-9]$"})
    return {"$schema": "http://json-schema.org/draft-07/schema#", **found}


def _properties(kind: type[BaseModel], parts: dict[str, Schema]) -> Schema:
    """Return the schema of every option of a kind; those of sections inside them are added to `parts`."""
    found = kind.model_json_schema(schema_generator=_Untitled)
    parts.update(found.get("$defs", {}))
    properties: Schema = found["properties"]
    return properties


def schema_text() -> str:
    """Return the JSON schema as indented text."""
    return json.dumps(schema(), indent=2)


def commented(config: Config) -> str:
    """Return YAML text of the same values as to_yaml(), where comments explain every key."""
    whole = schema()
    return "\n".join(_lines(config.model_dump(mode="json"), whole, whole["$defs"], "")) + "\n"


def meaning(key: Schema, required: bool) -> str:
    """Return the description of a key, its allowed values and its default, as one line."""
    default = "required" if required else f"default {json.dumps(key['default'])}" if "default" in key else ""
    rule = "; ".join(part for part in (allowed(key), default) if part)
    return plain(f"{key['description']} ({rule})" if "description" in key else rule)


def allowed(key: Schema) -> str:
    """Return the allowed values of a key in words: names, kinds and bounds."""
    if "anyOf" in key:
        return " or ".join(dict.fromkeys(text for text in map(allowed, key["anyOf"]) if text))
    if "enum" in key:
        return ", ".join(str(value) for value in key["enum"])
    if "const" in key:
        return str(key["const"])
    if "prefixItems" in key:
        return f"[{', '.join(map(allowed, key['prefixItems']))}]"
    if key.get("type") == "array":
        return f"list of {allowed(key.get('items', {}))}"
    if "$ref" in key or key.get("type") == "object":
        return "section"
    if key.get("type") == "string":
        return "package.module:Name" if key.get("pattern") == ":" else "text"
    bounds = [
        f"{sign} {key[name]}"
        for name, sign in (("minimum", ">="), ("exclusiveMinimum", ">"), ("maximum", "<="), ("exclusiveMaximum", "<"))
        if name in key
    ]
    return " ".join([KINDS.get(key.get("type", ""), ""), *bounds]).strip()


def _lines(tree: Mapping[str, Any], part: Schema, parts: Mapping[str, Schema], indent: str) -> Iterator[str]:
    keys = {**part.get("properties", {})}
    for rule in part.get("allOf", ()):
        if tree.get("name") == rule["if"]["properties"]["name"]["const"]:
            keys.update(rule["then"]["properties"])
    for name, value in tree.items():
        key = keys.get(name, {})
        inner = section_of(key, parts)
        if isinstance(value, dict) and "properties" in inner:
            yield from ([f"{indent}# {plain(key['description'])}"] if "description" in key else [])
            yield f"{indent}{name}:"
            yield from _lines(value, inner, parts, f"{indent}  ")
            continue
        if text := meaning(key, name in part.get("required", ())):
            yield f"{indent}# {text}"
        yield from (f"{indent}{line}" for line in yaml_loader.dump({name: value}).rstrip("\n").split("\n"))


def section_of(key: Schema, parts: Mapping[str, Schema]) -> Schema:
    """Return the schema of a section that a key is, if it is one (or null); else an empty one."""
    for choice in (key, *key.get("anyOf", ())):
        if "$ref" in choice:
            return parts[choice["$ref"].rpartition("/")[2]]
    return {}
