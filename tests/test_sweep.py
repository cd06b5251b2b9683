"""Sweeps: what they run, what they leave alone, what they refuse; the runs themselves are made up here."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml
from test_report import a_round, write

from fedkd_mpi import sweep
from fedkd_mpi.config import load, presets
from fedkd_mpi.errors import UserError


def spell(tmp_path: Path, **keys: object) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"config": "digits", "output": str(tmp_path / "logs"), **keys}))
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
    assert (config.seed, config.method, config.compression.t_end, config.rounds) == (5, "local", 0.99, 2)
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
    assert item.command([])[-2:] == ["--resume", str(item.log)]


@pytest.mark.parametrize(
    ("keys", "word"),
    [
        ({"seed": [1]}, "seed"),
        ({"seeds": []}, "seeds"),
        ({"runs": {"x": {"roundz": 3}}}, "run x: unknown key roundz; did you mean rounds"),
        ({"grid": {"rounds": 3}}, "grid.rounds"),
    ],
)
def test_a_wrong_sweep_is_one_line_before_any_run(tmp_path, keys, word):
    with pytest.raises(UserError, match=word) as caught:
        sweep.read(spell(tmp_path, **keys))
    assert "\n" not in str(caught.value)


def test_a_log_of_another_configuration_is_never_replaced(tmp_path, capsys):
    path = spell(tmp_path)
    (item,) = sweep.read(path)
    item.log.parent.mkdir()
    write(item.log, [a_round(0)])
    assert sweep.main([str(path)]) == 2
    assert "another configuration" in capsys.readouterr().err


@pytest.mark.parametrize("name", [path.name for path in (presets() / "table1").glob("*.yaml")])
def test_the_shipped_tables_are_valid_and_hold_every_method(name):
    items = sweep.read(Path("table1") / name)
    methods = {load(item.config, item.overrides).method for item in items}
    assert methods == {"centralized", "local", "fedavg", "fedprox", "scaffold", "feddropout", "fedkd"}


def write_log(item: sweep.Item, status: str) -> None:
    item.log.parent.mkdir(exist_ok=True)
    item.log.unlink(missing_ok=True)
    config = load(item.config, item.overrides)
    write(item.log, [a_round(0)], status, digest=item.digest, **yaml.safe_load(config.to_yaml()))
