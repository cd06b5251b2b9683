"""docs/extending.md: its own task, model and codec are short, and its command runs them as they are printed."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
from command import Command
from mpirun import REPOSITORY

import fedkd_mpi
from fedkd_mpi import costlog
from fedkd_mpi.datasets import digits

PAGE = (REPOSITORY / "docs/extending.md").read_text(encoding="utf-8")
PARTS = dict(re.findall(r"```python\n# (my_parts/\w+\.py)\n(.*?)```", PAGE, re.DOTALL))
(SHELL,) = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)


def test_each_part_is_at_most_40_lines():
    assert len(PARTS) == 3
    assert all(len(text.splitlines()) <= 40 for text in PARTS.values())


def test_the_command_of_the_page_runs_them(command: Command, monkeypatch: pytest.MonkeyPatch):
    Path("my_parts").mkdir()
    for name, text in PARTS.items():
        Path(name).write_text(text)
    monkeypatch.syspath_prepend(Path.cwd())
    words = shlex.split(SHELL.replace("\\\n", " "))
    assert words[:4] == ["PYTHONPATH=.", "python", "-m", "fedkd_mpi.run"]
    try:
        code, out, err = command(*words[4:], "--output", "own.h5")
        network = fedkd_mpi.load_student("own.h5", trust_log=True)
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "my_parts"]:
            del sys.modules[name]
    assert (code, err) == (0, "")
    assert "global student, global test set: right" in out
    log = costlog.read("own.h5")
    assert (log["uplink"]["layer_bytes"] == 4 + log["layers"]["numel"]).all()
    assert log["clients"]["label_histogram"].shape[1] == 2
    right = log["rounds"]["global_student_right"]
    assert right[-1] > max(0.88, right[0])
    test = digits.load(None, 0).test
    found = network(network.preprocess(test["x"])).logits.argmax(1).numpy() == test["y"] % 2
    assert found.mean() == pytest.approx(right[-1])
