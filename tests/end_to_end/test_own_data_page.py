"""docs/own-data.md: its programs and commands run as they are printed, one after another, in an empty folder."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from command import Command
from mpirun import REPOSITORY

from fedkd_mpi import costlog, datasets
from fedkd_mpi.datasets.own_options import OWN
from fedkd_mpi.run import main

PAGE = (REPOSITORY / "docs/own-data.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(python|bash)\n(.*?)```", PAGE, re.DOTALL)
QUICK = ["device=cpu"]


def test_the_page_runs_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_process: Command):
    for library in ("datasets", "PIL", "tokenizers", "transformers"):
        pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("FEDKD_DATA", raising=False)
    shown = [text for kind, text in BLOCKS if kind == "bash"]
    scripts = {text.splitlines()[0].removeprefix("# "): text for kind, text in BLOCKS if kind == "python"}
    for name, text in scripts.items():
        Path(name).write_text(text, encoding="utf-8")
    for name in ("make_examples.py", "save_folder.py"):
        runpy.run_path(name)
    logs = []
    for line in "".join(shown).replace("\\\n", " ").splitlines():
        words = [word for word in shlex.split(line) if word != "PYTHONPATH=."]
        if words[1] != "-m":
            runpy.run_path(words[1])
            continue
        assert words[:3] == ["python", "-m", "fedkd_mpi.run"]
        code, _, err = in_process(main, *words[3:], *QUICK)
        assert (code, err) == (0, ""), line
        logs.append(words[words.index("--output") + 1])
    sys.modules.pop("my_data", None)
    patients, scans, leaf, drawn, again = (
        costlog.read(f"{n}.h5") for n in ("patients", "scans", "leaf", "drawn", "again")
    )
    assert patients["rounds"]["global_student_accuracy"][-1] > 0.8
    assert len(scans["clients"]["train_samples"]) == 8
    assert leaf["clients"]["train_samples"].tolist() == [10] * 6
    assert leaf["clients"]["test_samples"].tolist() == [4] * 6
    assert np.array_equal(drawn["rounds"]["global_student_accuracy"], again["rounds"]["global_student_accuracy"])
    assert drawn["uplink"]["bytes"].tobytes() == again["uplink"]["bytes"].tobytes()
    assert set(logs) == {path.name for path in tmp_path.glob("*.h5")}


def test_the_page_names_every_key():
    for name, kind in OWN.items():
        assert name in datasets.OWN
        for key, field in kind.model_fields.items():
            assert f"`data.{key}`" in PAGE, f"{name}: {key}"
            assert field.description, f"{name}: {key}"
