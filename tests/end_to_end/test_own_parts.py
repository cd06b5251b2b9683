"""A user's own codec, task, data set and model are a file each, named by their dotted paths."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import Command
from mpirun import REPOSITORY

from fedkd_mpi import costlog


def shortest_codec() -> str:
    """Return the shortest codec of docs/extending.md."""
    page = (REPOSITORY / "docs/extending.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (block,) = [block for block in blocks if "halves.py" in block]
    return block


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path with files of a user's own."""
    folder = tmp_path / "path"
    folder.mkdir()
    (folder / "halves.py").write_text(shortest_codec())
    monkeypatch.syspath_prepend(folder)
    yield folder
    sys.modules.pop("halves", None)


def test_a_codec_is_one_file(command: Command, own: Path):
    code, _, err = command("compression.codec=halves:Halves", "rounds=8", "--output", "own.h5")
    assert (code, err) == (0, "")
    log = costlog.read("own.h5")
    assert (log["uplink"]["layer_bytes"] == 2 * log["layers"]["numel"]).all()
    assert (log["downlink"]["layer_bytes"] == 2 * log["layers"]["numel"]).all()
    assert log["rounds"]["global_student_accuracy"][-1] > 0.3


def test_a_task_a_data_set_and_a_model_are_a_file_each(command: Command, own: Path):
    arguments = [
        "data.name=own_parts:load",
        "task=own_parts:Regression",
        "teacher={name: 'own_parts:Wide', width: 16, learning_rate: 0.05}",
        "student={name: 'own_parts:Wide', width: 4, learning_rate: 0.05}",
        "partition={kind: natural, min_samples: 8}",
        "num_clients=5",
        "rounds=10",
    ]
    code, out, err = command(*arguments, "--output", "own.h5")
    assert (code, err) == (0, "")
    rounds = costlog.read("own.h5")["rounds"]
    for column in ("teacher_squared_error", "student_squared_error", "global_student_squared_error"):
        assert rounds[column][-1] < 0.3 * rounds[column][0]
    assert "global student, global test set: squared_error" in out
