"""report --published: the figures of others beside our runs, by name, over seeds, on their scale."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from command import Command
from made_logs import a_round, write

from fedkd_mpi.report.__main__ import main

ROWS = [
    {"method": "FedKD", "value": 60.0, "run": "fedkd"},
    {"method": "FedKD", "value": 61.5, "run": "fedkd", "mark": "?", "note": "quoted"},
    {"method": "Local", "run": "local"},
    {"method": "Other", "value": 70.25},
]


def a_sweep(folder: Path, **published: object) -> Path:
    path = folder / "sweep.yaml"
    tree = {"config": "digits", "runs": {"fedkd": {}, "local": {}, "mine": {}}}
    tree["published"] = {"source": "a paper", "rows": ROWS, **published}
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def a_log(folder: Path, name: str, seed: int, scores: list[tuple[float, float, float]]) -> Path:
    """Write a log: per round the weighted score and those of both clients."""
    rounds = [a_round(number) for number in range(len(scores))]
    for (row, _, _, _, training), (weighted, *own) in zip(rounds, scores, strict=True):
        row["teacher_accuracy_weighted"] = weighted
        training["teacher_accuracy"] = np.array(own)
    return write(folder / f"{name}-s{seed}.h5", rounds, name=name, seed=seed, rounds=3)


@pytest.fixture
def logs(tmp_path: Path) -> list[str]:
    made = [
        a_log(tmp_path, "fedkd", 0, [(0.5, 0.9, 0.1), (0.62, 0.6, 0.2), (0.6, 0.5, 0.7)]),
        a_log(tmp_path, "fedkd", 1, [(0.64, 0.4, 0.4)]),
        a_log(tmp_path, "mine", 0, [(0.3, 0.3, 0.3)]),
    ]
    return [str(path) for path in made]


def rows(logs: list[str], path: Path, capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    assert main([*logs, "--published", str(path), "--json"]) == 0
    return json.loads(capsys.readouterr().out)["published"]


def test_best_rounds_over_seeds_are_beside_the_rows_of_their_name(tmp_path, logs, capsys):
    fedkd, quoted, local, other, mine = rows(logs, a_sweep(tmp_path), capsys)
    assert (fedkd["method"], fedkd["run"], fedkd["seeds"], fedkd["rounds"]) == ("FedKD", "fedkd", [0, 1], 1)
    assert fedkd["here"] == pytest.approx([62, 64])
    assert (fedkd["mean"], fedkd["difference"]) == (pytest.approx(63), pytest.approx(3))
    assert (quoted["mark"], quoted["note"], quoted["difference"]) == ("?", "quoted", pytest.approx(1.5))
    assert (local["run"], local["published"], local["mean"]) == (None, None, None)
    assert (other["published"], other["run"]) == (70.25, None)
    assert (mine["method"], mine["run"], mine["here"]) == (None, "mine", pytest.approx([30]))


def test_each_client_s_own_best_and_the_last_round(tmp_path, logs, capsys):
    by_client = rows(logs, a_sweep(tmp_path, score="teacher_by_client", scale=1.0), capsys)
    assert by_client[0]["here"] == pytest.approx([(0.9 + 0.7) / 2, 0.4])
    alone = rows(logs, a_sweep(tmp_path, score="teacher_by_client", scale=1.0, client=1), capsys)
    assert alone[0]["here"] == pytest.approx([0.7, 0.4])
    last = rows(logs, a_sweep(tmp_path, which="last"), capsys)
    assert last[0]["here"] == pytest.approx([60, 64])


def test_clients_have_the_first_of_their_best_rounds(logs, capsys):
    assert main([logs[0], "--clients", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["clients"].values()
    teachers = [row for row in found if row["network"] == "teacher"]
    assert [(row["client"], row["best_round"]) for row in teachers] == [(0, 1), (1, 3)]
    assert [row[key] for row in teachers for key in ("best", "last")] == pytest.approx([0.9, 0.5, 0.7, 0.7])
    assert main([logs[0], "--clients"]) == 0
    table = capsys.readouterr().out.partition("Best round of each client")[2].splitlines()
    assert any(
        line.split() == ["fedkd", "0", "teacher", "1", "7", "accuracy", "0.7000", "3", "0.7000"] for line in table
    )


def test_the_table_says_whence_and_what(tmp_path, logs, capsys):
    assert main([*logs, "--published", str(a_sweep(tmp_path))]) == 0
    out = capsys.readouterr().out
    table = out[out.index("Published beside here") :].splitlines()
    assert any(line.split()[:7] == ["FedKD", "60.00", "paper", "fedkd", "63.00", "±", "1.41"] for line in table)
    assert "Published: a paper. Here: accuracy, teachers, own test samples of all clients together, best round" in out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rows": [{"method": "A", "run": "fedkdd"}]}, "published.rows.0.run=fedkdd is none of fedkd, local, mine"),
        ({"rows": []}, "published.rows"),
        ({"mark": "x"}, "unknown key published.mark"),
        ({"metric": "f1"}, "has no metric f1: it has accuracy"),
    ],
)
def test_a_wrong_section_is_one_line(tmp_path, logs, change, words, in_process: Command):
    code, _, err = in_process(main, *logs, "--published", a_sweep(tmp_path, **change))
    assert (code, err.count("\n")) == (2, 1)
    assert words in err


def test_a_sweep_without_the_section_is_refused(logs, in_process: Command):
    code, out, err = in_process(main, *logs, "--published", "table1/digits")
    assert (code, out) == (2, "")
    assert "has no section published" in err
