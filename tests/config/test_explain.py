"""The keys explain themselves: comments that change no value, and a schema that accepts what load() accepts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

from fedkd_mpi import tasks
from fedkd_mpi.common import yaml_loader
from fedkd_mpi.config import explain
from fedkd_mpi.config.load import load, parse
from fedkd_mpi.config.shipped import presets
from fedkd_mpi.run import arguments

PRESETS = sorted(path for path in presets().rglob("*.yaml") if path.parent.name not in ("table1", "published"))
SCHEMA = Draft7Validator(json.loads(explain.schema_text()))


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_comments_change_no_value_and_the_schema_accepts_every_preset(path: Path):
    config = load(path)
    text = explain.commented(config)
    assert parse(yaml_loader.parse_mapping(text, "text")).digest() == config.digest()
    assert yaml.safe_load(text) == yaml.safe_load(config.to_yaml())
    assert [error.message for error in SCHEMA.iter_errors(yaml_loader.read_mapping(path, "file"))] == []
    assert [error.message for error in SCHEMA.iter_errors(config.model_dump(mode="json"))] == []


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_keys_that_a_preset_suggests_take_effect_where_they_are_uncommented(path: Path, tmp_path: Path):
    lines, plain = path.read_text().splitlines(), load(path)
    suggested = [at for at, line in enumerate(lines) if re.match(r"# [a-z_]+: .* # ", line)]
    assert suggested
    for at in suggested:
        file = tmp_path / f"{at}.yaml"
        file.write_text("\n".join([*lines[:at], lines[at][2:], *lines[at + 1 :]]))
        changed = load(file)
        assert changed.digest() != plain.digest()
        assert changed.stop.metric in (None, *tasks.find(changed.task.name).metrics)


def test_every_key_has_its_meaning_its_bounds_and_its_default_above_it():
    lines = explain.commented(load()).splitlines()
    for key, words in (
        ("seed: 0", "seed of all random streams (whole number >= 0 < 9223372036854775808; default 0)"),
        ("  batch_size: 16", "samples per mini-batch (whole number >= 1 <= 10000000; default 32)"),
        ("  activation: relu", 'between the layers (relu, gelu, tanh; default "relu")'),
    ):
        assert lines[lines.index(key) - 1].strip() == f"# {words}"
    keys = [index for index, line in enumerate(lines) if line.endswith(":") or (": " in line and "#" not in line)]
    silent = [
        lines[index] for index in keys if index and "#" not in lines[index - 1] and not lines[index].endswith(":")
    ]
    assert silent == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"rouds": 3},
        {"rounds": 0},
        {"task": "images"},
        {"compression": {"codec": "svdd"}},
        {"student": {"name": "mlp", "learning_rate": 0.1, "hidden": [0]}},
        {"time_limit": "3 hours"},
    ],
    ids=str,
)
def test_the_schema_refuses_what_load_refuses(wrong: dict[str, Any]):
    tree = yaml_loader.read_mapping(presets() / "digits.yaml", "file")
    assert SCHEMA.is_valid(tree)
    assert not SCHEMA.is_valid({**tree, **wrong})


def test_bare_belongs_to_print_config(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        arguments(["--bare"])
    assert "--bare belongs to --print-config" in capsys.readouterr().err
