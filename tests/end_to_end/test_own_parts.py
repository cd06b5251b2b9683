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
from fedkd_mpi.run import main


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


def test_options_of_a_task_reach_it_are_checked_and_are_resumed(command: Command, own: Path):
    how = ["data.name=plain_digits:load", "compression.codec=none", "num_clients=4", "local={steps: 2}", "rounds=2"]
    for number, options in enumerate(["", ", shift: 1", ", shift: 1, times: 2.5"]):
        name = f"{number}.h5"
        assert command(*how, f"task={{name: own_parts:Shifted{options}}}", "--output", name)[0] == 0
    losses = [costlog.read(f"{number}.h5")["training"]["student_loss"] for number in range(3)]
    assert losses[0][0] < losses[1][0] < losses[2][0]  # a shift by one class changes the labels, a factor the loss
    assert main(["--resume", "2.h5", "--trust-log", "rounds=3"]) == 0
    assert len(costlog.read("2.h5")["rounds"]["round"]) == 3
    for options, says in [
        ("name: own_parts:Shifted, shft: 1", "unknown key task.shft; did you mean task.shift?"),
        ("name: own_parts:Shifted, shift: -1", "task.shift=-1: must be greater than or equal to 0"),
        ("name: own_parts:Shifted, shift: one", "task.shift=one: must be a whole number"),
        (
            "name: own_parts:Regression, shift: 1",
            "task=own_parts:Regression: got an unexpected keyword argument 'shift'",
        ),
        ("name: image_classification, shift: 1", "task=image_classification has no option shift"),
    ]:
        code, _, err = command(*how, f"task={{{options}}}")
        assert (code, err.count("\n")) == (2, 1)
        assert says in err


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
