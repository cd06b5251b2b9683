"""The only YAML reader: for configurations, overrides, sweeps, network profiles and the configurations in logs.

Scalars follow the core schema of YAML 1.2, not YAML 1.1 as in PyYAML: 010 is ten, 1e-3 is a number, and yes, 1:30,
1_000 and 2026-11-29 are text. Ambiguous input is refused with its line: duplicate keys, keys that are not text, tags,
text of several lines. Nesting, aliases and sizes are bounded. Source: yaml.org/spec/1.2.2, section 10.3.
"""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import Composer, ComposerError
from yaml.parser import Parser
from yaml.reader import Reader
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner

from fedkd_mpi.errors import UserError, shown

LARGEST = 2**20  # bytes of a file or an override
DEEPEST = 30  # levels of nesting
MOST = 100_000  # values, including those repeated by aliases
_PREFIX = "tag:yaml.org,2002:"
_SCALARS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
}


class _Core(BaseResolver):
    """Types of plain scalars by the core schema of YAML 1.2."""


for _name, (_pattern, _first) in _SCALARS.items():  # in this order: the pattern of float also matches int
    _Core.add_implicit_resolver(_PREFIX + _name, re.compile(f"(?:{_pattern})\\Z"), _first)
_Core.add_implicit_resolver(f"{_PREFIX}merge", re.compile(r"<<\Z"), ["<"])


class _Loader(Reader, Scanner, Parser, Composer, _Core):
    """PyYAML's parser, with bounds on nesting and repetition when nodes are created."""

    def __init__(self, text: str):
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        _Core.__init__(self)
        self._depth = self._values = 0
        self._sizes: dict[int, int] = {}  # number of values in each completed node, by id

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]  # types-PyYAML has no types for it
        mark: Any = event.start_mark
        if isinstance(event, yaml.AliasEvent):
            node = Composer.compose_node(self, parent, index)
            if id(node) not in self._sizes:
                raise ComposerError(None, None, f"*{event.anchor} contains itself", mark)
            self._count(self._sizes[id(node)], event)
            return node
        if getattr(event, "tag", None) not in (None, f"{_PREFIX}str"):
            raise ComposerError(None, None, f"the tag {shown(event.tag)} is not supported", mark)
        self._depth += 1
        if self._depth > DEEPEST:
            raise ComposerError(None, None, f"nested more than {DEEPEST} levels deep", mark)
        before = self._values
        self._count(1, event)
        node = Composer.compose_node(self, parent, index)
        self._sizes[id(node)] = self._values - before
        self._depth -= 1
        return node

    def _count(self, values: int, event: Any) -> None:
        self._values += values
        if self._values > MOST:
            raise ComposerError(None, None, f"more than {MOST} values", event.start_mark)


def parse(text: str) -> Any:
    """Return the value of a YAML text; raises yaml.MarkedYAMLError, which reason() converts to one line."""
    node = _compose(text)
    return None if node is None else _value(node)


def parse_override(text: str) -> Any:
    """Return the value of the right side of KEY=VALUE; raises ValueError with one line."""
    try:
        return parse(text)
    except yaml.YAMLError as error:
        raise ValueError(reason(error, file=False)) from None


def read_mapping(path: Path, what: str) -> dict[str, Any]:
    """Return the keys and values of a YAML file; raises UserError with one line that names it as `what`.

    Raises FileNotFoundError if the file does not exist.
    """
    return parse_mapping(read_text(path, what), f"{what} {shown(path)}")


def parse_mapping(text: str, source: str) -> dict[str, Any]:
    """Return the keys and values of a YAML text; raises UserError naming `source` and the line."""
    try:
        tree = parse(text)
    except yaml.YAMLError as error:
        raise UserError(f"{source} is not YAML: {reason(error)}") from None
    if not isinstance(tree, dict):
        found = "empty" if tree is None else f"a {'list' if isinstance(tree, list) else 'single value'}"
        raise UserError(f"{source} must be a mapping of keys to values, but is {found}")
    return tree


def read_text(path: Path, what: str) -> str:
    """Return the text of a small file.

    Raises FileNotFoundError if it does not exist, and UserError naming it as `what` if it is not a regular file, cannot
    be read, is too large or is not UTF-8.
    """
    try:
        # Do not block: opening a pipe without a writer would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            os.close(descriptor)
            kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device, not a file"
            raise UserError(f"cannot read {what} {shown(path)}: it is {kind}")
        with os.fdopen(descriptor, "rb") as file:
            data = file.read(LARGEST + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"cannot read {what} {shown(path)}: {error.strerror}") from None
    except ValueError:
        raise UserError(f"cannot read {what} {shown(path)}: the file name is invalid") from None
    if len(data) > LARGEST:
        raise UserError(f"cannot read {what} {shown(path)}: it has more than {LARGEST} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(f"{what} {shown(path)} is not YAML: line {line} is not UTF-8 text") from None


def reason(error: yaml.YAMLError, file: bool = True) -> str:
    """Return the error in one line, with the line number in the file unless `file` is false."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    parts = [getattr(error, "context", None), getattr(error, "problem", None)]
    text = " ".join(", ".join(part for part in parts if part).split()) or "it cannot be read"
    return f"line {mark.line + 1}: {text}" if mark and file else text


def slices(text: str) -> list[str]:
    """Return the source text of each value in a list without brackets, such as a,"b, c",[1, 2].

    Raises ValueError as parse_override() does.
    """
    listed = f"[{text}]"
    parse_override(listed)
    node = _compose(listed)
    if not isinstance(node, yaml.SequenceNode) or node.end_mark.index != len(listed):
        raise ValueError("not a list of values")
    return [listed[item.start_mark.index : item.end_mark.index] for item in node.value]


def dump(tree: Any) -> str:
    """Return YAML text that both this reader and a reader of YAML 1.1 read as `tree`."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False)


class _Dumper(yaml.SafeDumper):
    """Quotes text that would have another type in YAML 1.1 or 1.2."""

    def represent_str(self, text: str) -> yaml.ScalarNode:
        # types-PyYAML has no types for resolve()
        plain = _CORE.resolve(yaml.ScalarNode, text, (True, False)) == f"{_PREFIX}str"  # type: ignore[no-untyped-call]
        return self.represent_scalar(f"{_PREFIX}str", text, style=None if plain else "'")

    def ignore_aliases(self, data: Any) -> bool:
        return True


_CORE = _Core()
_Dumper.add_representer(str, _Dumper.represent_str)


def _compose(text: str) -> Any:
    if len(text) > LARGEST:
        raise ComposerError(None, None, f"more than {LARGEST} characters", None)
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        mark = yaml.Mark("", error.position, text[: error.position].count("\n"), 0, None, 0)
        raise ComposerError(None, None, f"the character {error.character:#x} is not allowed in text", mark) from None
    return loader.get_single_node()


def _value(node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return _mapping(node)
    if isinstance(node, yaml.SequenceNode):
        return [_value(item) for item in node.value]
    kind, text = node.tag.removeprefix(_PREFIX), node.value
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "float":
        return float(text.replace(".", "") if text.lower().endswith(("inf", "nan")) else text)
    if kind == "int":
        try:
            return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
        except ValueError:  # exceeds Python's limit of digits
            raise ComposerError(None, None, f"a number of {len(text)} digits", node.start_mark) from None
    return _text(node)


def _text(node: yaml.Node) -> str:
    try:  # JSON writes characters outside the basic plane as two escapes
        text = node.value.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise ComposerError(None, None, "half of a surrogate pair is not text", node.start_mark) from None
    odd = next((character for character in text if unicodedata.category(character) in ("Cc", "Zl", "Zp")), None)
    if odd is not None:
        raise ComposerError(None, None, f"text contains the control character {odd!r}", node.start_mark)
    return text


def _mapping(node: yaml.MappingNode) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    own: dict[str, Any] = {}
    lines: dict[str, int] = {}
    for key, value in node.value:
        is_merge = key.tag == f"{_PREFIX}merge"
        if not isinstance(key, yaml.ScalarNode) or not (is_merge or key.tag == f"{_PREFIX}str"):
            text = shown(key.value) if isinstance(key, yaml.ScalarNode) else "that is a list or a mapping"
            raise ComposerError(None, None, f"the key {text} is not text: quote it", key.start_mark)
        name, line = _text(key), key.start_mark.line + 1
        if name in lines:
            first = f", first in line {lines[name]}" if lines[name] != line else ""
            raise ComposerError(None, None, f"{shown(name)} is given twice{first}", key.start_mark)
        lines[name] = line
        if not is_merge:
            own[name] = _value(value)
            continue
        for source in _merged(value):
            if both := merged.keys() & source.keys():
                raise ComposerError(None, None, f"<< takes {shown(min(both))} from two mappings", value.start_mark)
            merged |= source
    return merged | own  # as YAML specifies: a mapping's own keys override merged ones


def _merged(node: yaml.Node) -> Iterator[dict[str, Any]]:
    for item in node.value if isinstance(node, yaml.SequenceNode) else [node]:
        if not isinstance(item, yaml.MappingNode):
            raise ComposerError(None, None, "<< needs a mapping or a list of mappings", item.start_mark)
        yield _mapping(item)
