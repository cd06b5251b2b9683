"""Sweeps: what they run, what they leave alone, what they refuse; the runs themselves are made up here."""

from __future__ import annotations

import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

import pytest
import yaml
from locked import locked
from made_logs import a_round, write
from mpirun import PATIENCE

from fedkd_mpi import sweep
from fedkd_mpi.config.load import load
from fedkd_mpi.errors import UserError


def spell(tmp_path: Path, **keys: object) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"config": "digits", "output": str(tmp_path / "logs"), **keys}, sort_keys=False))
    return path


def test_runs_grid_and_seeds_are_all_combined_seed_by_seed(tmp_path):
    path = spell(
        tmp_path,
        seeds=[3, 5],
        set={"rounds": 2, "student": {"name": "mlp", "hidden": [8], "learning_rate": 0.5}},
        runs={"a": {}, "b": {"method": "local"}},
        grid={"compression.t_end": [0.96, 0.99]},
    )
    items = sweep.read(path)
    names = [f"{run}-t_end{end}-s{seed}.h5" for seed in (3, 5) for run in "ab" for end in (0.96, 0.99)]
    assert [item.log.name for item in items] == names
    config = load(items[-1].config, items[-1].overrides)
    assert (config.seed, config.method.name, config.compression.t_end, config.rounds) == (5, "local", 0.99, 2)
    assert config.student.options()["hidden"] == [8]
    assert len({item.digest for item in items}) == 8


def test_finished_logs_are_not_run_again_and_interrupted_ones_are(tmp_path, monkeypatch, capsys):
    path = spell(tmp_path, runs={name: {} for name in ("done", "cut", "new")}, set={"rounds": 1})
    items = sweep.read(path)
    (tmp_path / "logs").mkdir()
    for item, status in zip(items, ("completed", "interrupted"), strict=False):
        write_log(item, status)
    ran = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess:
        ran.append(command)
        write_log(next(item for item in items if str(item.log) in command), "completed")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    assert sweep.main([str(path), "--launch", "mpirun -n 3"]) == 0
    assert [command[command.index("--output") + 1] for command in ran] == [str(item.log) for item in items[1:]]
    assert all(command[:3] == ["mpirun", "-n", "3"] for command in ran)
    out = capsys.readouterr().out
    assert "1 of 3 logs are finished" in out
    assert f"{items[1].log}: run 1 of 2 begins (to do)" in out
    assert re.search(rf"{re.escape(str(items[1].log))}: done in .*; 1 of 2 runs, about .* left\n", out)
    assert re.search(rf"{re.escape(str(items[2].log))}: done in .*; 2 of 2 runs\n", out)
    assert "Scores" in out
    assert sweep.main([str(path), "--index", "0"]) == 0
    assert len(ran) == 2


def test_a_failed_run_is_told_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    path = spell(tmp_path, runs={"bad": {}, "good": {}})
    codes = iter([1, 0])
    monkeypatch.setattr(
        subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, next(codes), "", "why")
    )
    assert sweep.main([str(path)]) == 1
    out, err = capsys.readouterr()
    assert "good-s0.h5: done" in out
    assert "bad-s0.h5: exit code 1" in err
    assert "why" in err


def test_an_unfinished_log_with_a_checkpoint_is_resumed(tmp_path):
    (item,) = sweep.read(spell(tmp_path, set={"rounds": 1}))
    write_log(item, "interrupted")
    folder = item.log.with_name(f"{item.log.name}.checkpoints")
    folder.mkdir()
    (folder / "1").touch()
    assert item.command([])[-3:] == ["--resume", str(item.log), "--trust-log"]


@pytest.mark.parametrize(
    ("keys", "word"),
    [
        ({"seed": [1]}, "seed"),
        ({"seeds": []}, "seeds"),
        ({"runs": {"x": {"roundz": 3}}}, "run x: unknown key roundz; did you mean rounds"),
        ({"grid": {"rounds": 3}}, "grid.rounds"),
        ({"seeds": [True]}, "seeds.0=True: must be a whole number"),
        ({"seeds": [2**63]}, "seeds.0=9223372036854775808: must be less than"),
        ({"set": {"seed": 3}}, "set: seed is given by seeds"),
        ({"grid": {"seed": [1, 2]}}, "grid: seed is given by seeds"),
        ({"set": {"student.hidden": [8], "student": {}}}, "set: student replaces student.hidden"),
        ({"seeds": list(range(200)), "grid": {"rounds": list(range(1, 100))}}, "19800 runs are more than 10000"),
        ({"runs": {"a" * 201: {}}}, "shorter than 200"),
    ],
)
def test_a_wrong_sweep_is_one_line_before_any_run(tmp_path, keys, word):
    with pytest.raises(UserError, match=word) as caught:
        sweep.read(spell(tmp_path, **keys))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"set": {"name": "study"}, "runs": {"slow": {}, "fast": {}}}, "the runs slow and fast have the same log, "),
        ({"runs": {"a": {"name": "b"}, "b": {}}}, "the runs a and b have the same log, "),
        ({"runs": {"run": {}, "Run": {}}}, "the runs run and Run have the same log, "),
        ({"runs": {"a b": {}, "a_b": {}}}, "the runs a b and a_b have the same log, "),
        ({"grid": {"student.hidden": [[1, 2], "1_2"]}}, "student.hidden"),
        ({"seeds": [3, 5, 3]}, "the run run is given twice with the same log, "),
        ({"grid": {"rounds": [2, 3, 2]}}, "the run run-rounds=2 is given twice"),
        ({"grid": {"student.learning_rate": [1, 1.0]}}, "one run twice, as run-learning_rate=1 and as run-learning_r"),
    ],
)
def test_runs_that_share_a_log_are_refused_before_the_first(tmp_path, keys, words, capsys):
    assert sweep.main([str(spell(tmp_path, **keys)), "--list"]) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert words in err


def test_lists_in_a_grid_make_names_of_files(tmp_path):
    items = sweep.read(spell(tmp_path, grid={"student.hidden": [[64], [128, 64]]}))
    assert [item.log.name for item in items] == ["run-hidden_64-s0.h5", "run-hidden_128_64-s0.h5"]


def test_two_sweeps_at_once_make_every_log_once(tmp_path, monkeypatch):
    path = spell(tmp_path, set={"rounds": 1})
    (item,) = sweep.read(path)
    item.log.parent.mkdir()
    said: Queue[str] = Queue()
    monkeypatch.setattr(sweep, "say", lambda text, error=False: said.put(text))
    monkeypatch.setattr(sweep, "PATIENCE", 0.02)
    with locked(Path(f"{item.log}.sweep")) as other, ThreadPoolExecutor(1) as pool:
        try:
            second = pool.submit(sweep.main, [str(path)])
            while "waiting for another sweep" not in said.get(timeout=PATIENCE):
                pass
            write_log(item, "completed")
        finally:
            other.stdin.close()  # whatever happens, the lock is given back and nobody waits for ever
        assert second.result(timeout=PATIENCE) == 0
    assert any("done by another sweep" in text for text in said.queue)
    assert [file.name for file in item.log.parent.iterdir()] == [item.log.name]


def test_what_is_no_lock_is_refused_instead_of_waited_for(tmp_path, capsys):
    path = spell(tmp_path, set={"rounds": 1})
    (item,) = sweep.read(path)
    item.log.with_name(f"{item.log.name}.sweep.lock").mkdir(parents=True)
    assert sweep.main([str(path)]) == 2
    assert "is not a lock file" in capsys.readouterr().err


def test_a_log_of_another_configuration_is_never_replaced(tmp_path, capsys):
    path = spell(tmp_path)
    (item,) = sweep.read(path)
    item.log.parent.mkdir()
    write(item.log, [a_round(0)])
    assert sweep.main([str(path)]) == 2
    assert "another configuration" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["digits.yaml", "fashion_mnist.yaml"])
def test_the_shipped_tables_are_valid_and_hold_every_method(name):
    items = sweep.read(Path("table1") / name)
    methods = {load(item.config, item.overrides).method.name for item in items}
    assert methods == {"centralized", "local", "fedavg", "fedprox", "scaffold", "feddropout", "fedkd"}


def write_log(item: sweep.Item, status: str) -> None:
    item.log.parent.mkdir(exist_ok=True)
    item.log.unlink(missing_ok=True)
    config = load(item.config, item.overrides)
    write(item.log, [a_round(0)], status, digest=item.digest, **yaml.safe_load(config.to_yaml()))
