"""The reader of YAML: numbers by the core schema of YAML 1.2, bounded work, one line of blame."""

from __future__ import annotations

import json
import math
import os
from itertools import product
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from fedkd_mpi import sweep
from fedkd_mpi.common.yaml_loader import DEEPEST, LARGEST, dump, parse, parse_override, read_mapping, slices
from fedkd_mpi.config.load import load
from fedkd_mpi.errors import UserError
from fedkd_mpi.report import links

texts = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=8)
WORDS = "1e-3 008 0o14 0x1f 1_000 1:30 yes on no off true null ~ << = - ? [ { 2026-11-29 .5e3 .inf"
words = st.sampled_from(WORDS.split())
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), texts, words)
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts | words, inner, max_size=3)
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(
            (f"{sign}{zeros}{digits}", int(f"{sign}{digits}"))
            for sign, zeros, digits in product(("", "-", "+"), ("", "0", "00"), ("0", "7", "8", "10", "19"))
        ),
        ("0o17", 15),
        ("0x1F", 31),
        ("1e-3", 0.001),
        ("1E5", 1e5),
        ("-.5e+1", -5.0),
        ("3.", 3.0),
        ("00.5", 0.5),
        (".inf", math.inf),
        ("-.Inf", -math.inf),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("", None),
        ("Null", None),
    ],
)
def test_scalars_are_those_of_the_core_schema(text: str, value: object):
    found = parse(text)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    "text",
    [
        "yes",
        "no",
        "on",
        "off",
        "y",
        "n",
        "Yes",
        "ON",
        "0b11",
        "1_000",
        "1:30",
        "190:20:30",
        "2026-11-29",
        "0o8",
        "0xg",
        "1e",
        "tRue",
        "nan",
        "inf",
    ],
)
def test_what_yaml_1_1_takes_for_something_else_is_text(text: str):
    assert parse(text) == text


def test_not_a_number_is_one():
    assert math.isnan(parse(".nan"))


@given(trees)
@example({"a": ["1e-3", "yes", {"008": "\U0001f600"}]})
def test_what_is_written_is_read_back_by_either_version_of_yaml(tree: object):
    assert parse(dump(tree)) == tree
    assert yaml.safe_load(dump(tree)) == tree


@given(trees)
@example("\U0001f600")
def test_json_is_read_as_json(tree: object):
    text = json.dumps(tree)
    assert parse_override(text.replace("Infinity", ".inf")) == tree  # which JSON does not have


@given(st.lists(trees, min_size=1, max_size=4))
def test_a_list_is_cut_into_the_texts_of_its_values(values: list):
    written = [json.dumps(value) for value in values]
    assert slices(",".join(written)) == written


@given(st.text(max_size=40) | st.lists(st.sampled_from("[]{},:&*!|>'\"- \n#?%@`~<a01"), max_size=30).map("".join))
def test_any_text_is_a_value_or_one_line(text: str):
    told = "one"
    try:
        parse_override(text)
    except ValueError as error:
        told = str(error)
    assert len(told.splitlines()) == 1


LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]\n" for n in range(9))
REFUSED = {
    "a: 1\nb: 2\na: 3": "line 3: a is given twice, first in line 1",
    "a: 1\n'a': 2": "line 2: a is given twice, first in line 1",
    "s:\n  - k:\n      x: 1\n      y: 1\n      x: 2": "line 5: x is given twice, first in line 3",
    "s: {x: 1, x: 1}": "line 1: x is given twice",
    "b: {<<: {x: 1}, <<: {y: 2}}": "line 1: << is given twice",
    "b: {<<: [{x: 1}, {x: 2}]}": "line 1: << takes x from two mappings",
    "b: {<<: [1]}": "line 1: << needs a mapping",
    "1: a": "line 1: the key 1 is not text: quote it",
    "true: a": "the key true is not text",
    "~: a": "the key ~ is not text",
    "[a]: b": "the key that is a list or a mapping is not text",
    "a: !!python/object/apply:os.system [true]": "python/object/apply:os.system is not supported",
    "a: !!int '5'": "line 1: the tag tag:yaml.org,2002:int is not supported",
    "a: !own 5": "line 1: the tag !own is not supported",
    "a: &x [*x]": "line 1: *x contains itself",
    "a: *x": "line 1: found undefined alias 'x'",
    LAUGHS: "more than 100000 values",
    "[" * 10_000: f"line 1: nested more than {DEEPEST} levels deep",
    "{a: " * 10_000: f"line 1: nested more than {DEEPEST} levels deep",
    "- " * 10_000 + "a": f"line 1: nested more than {DEEPEST} levels deep",
    "a: 1\n---\na: 2": "line 2: expected a single document",
    "a:\n\tb: 1": "line 2: while scanning for the next token, found character '\\t'",
    "a: b: c": "line 1: mapping values are not allowed here",
    "a: 1\nb: 'x\\0'\nc: \"x\\0\"": "line 3: text contains the control character '\\x00'",
    "a: |\n  text\n": "line 1: text contains the control character '\\n'",
    'a: "\\ud83d"': "line 1: half of a surrogate pair is not text",
    "a: 1\nb: \x07": "line 2: the character 0x7 is not allowed in text",
    "a: " + "9" * 5000: "line 1: a number of 5000 digits",
    "a: [1,": "line 1: while parsing a flow node",
    "": "must be a mapping of keys to values, but is empty",
    "# nothing": "but is empty",
    "- a": "must be a mapping of keys to values, but is a list",
    "a": "must be a mapping of keys to values, but is a single value",
    "#" * (LARGEST + 1): "has more than 1048576 bytes",
}


def readers(path: Path) -> list:
    return [lambda: load(path), lambda: sweep.read(path), lambda: links.find(str(path))]


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: ascii(text[:20]))
def test_what_is_not_to_be_trusted_is_refused_in_one_line_by_every_reader(text: str, tmp_path: Path):
    path = tmp_path / "own.yaml"
    path.write_text(text, encoding="utf-8")
    for reader in readers(path):
        with pytest.raises(UserError) as caught:
            reader()
        assert REFUSED[text] in str(caught.value)
        assert str(path) in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"a: 1\nb: \xe9\n", "line 2 is not UTF-8 text"), ("a: 1".encode("utf-16"), "line 1 is not UTF-8 text")],
)
def test_files_in_other_encodings_are_refused(content: bytes, words: str, tmp_path: Path):
    (tmp_path / "own.yaml").write_bytes(content)
    for reader in readers(tmp_path / "own.yaml"):
        with pytest.raises(UserError, match=words):
            reader()


def test_a_byte_order_mark_and_carriage_returns_are_no_text(tmp_path: Path):
    path = tmp_path / "own.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: x\r\n")
    assert read_mapping(path, "file") == {"a": 1, "b": "x"}


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "circle.yaml").symlink_to(tmp_path / "circle.yaml")
    for name in ("pipe.yaml", "folder.yaml", "circle.yaml", "/dev/zero", "none.yaml", "a" * 300, "x\0y"):
        for reader in readers(tmp_path / name):
            with pytest.raises(UserError) as caught:
                reader()
            assert len(str(caught.value).splitlines()) == 1


def test_own_keys_stand_before_those_that_are_merged():
    text = "base: &base {x: 1, y: 2}\nmore: &more {z: 3}\nown: {y: 5, <<: [*base, *more]}"
    assert parse(text)["own"] == {"x": 1, "y": 5, "z": 3}
