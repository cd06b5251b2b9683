"""Going on with a log that was changed, linked, replaced or comes from elsewhere: rightly, or refused in a line."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import logs
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from sessions import SMALL, checkpoints

from fedkd_mpi import costlog
from fedkd_mpi.common.registry import function_of, resolve
from fedkd_mpi.errors import RunFault, UserError
from fedkd_mpi.fault_tolerance import manifest as manifests
from fedkd_mpi.fault_tolerance.log_lock import Lock
from fedkd_mpi.run import main

PART = "data.name=plain_digits:load"
ONE_ROUND = "time_limit=0.001"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that stopped after its first round, which adds a checkpoint each time it is resumed."""
    log = tmp_path_factory.mktemp("made") / "x.h5"
    assert main([*SMALL, "rounds=4", "optimizer={name: adam}", ONE_ROUND, "--output", str(log)]) == 75
    return log.parent


@pytest.fixture
def log(made: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run" / "x.h5"


def refusal(capsys: pytest.CaptureFixture, *arguments: object) -> str:
    """Return the one line with which a resumed run is refused with code 2."""
    capsys.readouterr()
    try:
        code = main(["--resume", *map(str, arguments)])
    except SystemExit as end:
        code = end.code
    out, err = capsys.readouterr()
    assert (code, out, len(err.splitlines())) == (2, "", 1), err
    assert err[:-1].isprintable()
    return err


def change(path: Path, word: str, other: str, *, sealed: bool) -> None:
    """Change the configuration in a log, and its digest with it where it is `sealed` anew."""
    with h5py.File(path, "r+") as file:
        text = file.attrs["config"].replace(word, other)
        assert text != file.attrs["config"]
        file.attrs["config"] = text
        if sealed:
            file.attrs["config_digest"] = hashlib.sha256(text.encode()).hexdigest()


def test_a_changed_configuration_is_refused_with_both_digests(log: Path, capsys: pytest.CaptureFixture):
    told = costlog.read(log)["attrs"]["config_digest"]
    change(log, "rounds: 4", "rounds: 9", sealed=False)
    found = hashlib.sha256(costlog.read(log)["attrs"]["config"].encode()).hexdigest()
    line = refusal(capsys, log, "--trust-log")
    assert found in line
    assert told in line


def test_code_in_a_log_is_named_again_or_not_run(log: Path, capsys: pytest.CaptureFixture):
    line = refusal(capsys, log)
    assert PART in line
    assert "--trust-log" in line
    assert PART in refusal(capsys, log, "data.name=other:load")
    assert main(["--resume", str(log), PART, ONE_ROUND]) == 75
    assert f"--resume {log} {PART}" in capsys.readouterr().out
    assert main(["--resume", str(log), "--trust-log", ONE_ROUND]) == 75


@pytest.mark.parametrize(
    ("word", "other"),
    [
        ("plain_digits:load", "os:system"),
        ("plain_digits:load", "subprocess:Popen"),
        ("name: mlp", "name: subprocess:Popen"),
        ("task: image_classification", "task: subprocess:Popen"),
        ("codec: svd", "codec: os:system"),
    ],
)
def test_only_a_part_is_called(log: Path, capsys: pytest.CaptureFixture, word: str, other: str):
    change(log, word, other, sealed=True)
    for checkpoint in checkpoints(log):
        shutil.rmtree(checkpoint)
    name = other.partition(": ")[2] or other
    assert name in refusal(capsys, log)
    line = refusal(capsys, log, "--trust-log")
    assert f"={name} is not a " in line


@pytest.mark.parametrize("name", ["os:system", "subprocess:run", "subprocess:Popen", "os:sep", "shutil:rmtree"])
def test_what_is_no_function_of_root_and_seed_is_no_data_set(name: str):
    with pytest.raises(UserError, match=f"data.name={name} is not a function whose parameters begin root, seed"):
        resolve(name, {}, "data.name", function_of("root", "seed"))


def test_a_link_and_a_linked_folder_lead_to_the_log(log: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    link, folder = tmp_path / "latest.h5", tmp_path / "linked"
    link.symlink_to(log)
    folder.symlink_to(log.parent)
    for name, rounds in ((link, 1), (folder / "x.h5", 2)):
        capsys.readouterr()
        assert main(["--resume", str(name), "--trust-log", ONE_ROUND]) == 75
        assert f"continues with round {rounds + 1} of 4 from round-{rounds:06d}" in capsys.readouterr().out
    assert link.is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == {"run", "latest.h5", "linked"}


def test_a_hard_link_is_refused(log: Path, capsys: pytest.CaptureFixture):
    os.link(log, log.with_name("other.h5"))
    assert "2 names" in refusal(capsys, log.with_name("other.h5"), "--trust-log")


def test_a_new_log_goes_where_a_dangling_link_leads(tmp_path: Path):
    link = tmp_path / "link.h5"
    link.symlink_to(tmp_path / "new" / "real.h5")
    assert main([*SMALL, "rounds=1", "--output", str(link)]) == 0
    assert link.is_symlink()
    assert costlog.read(tmp_path / "new" / "real.h5")["attrs"]["status"] == "completed"


@pytest.mark.parametrize("kind", [os.symlink, os.link])
@pytest.mark.parametrize("suffix", [".lock", ".tmp"])
def test_a_link_beside_the_log_overwrites_nothing(tmp_path: Path, kind: Callable[..., None], suffix: str):
    precious, path = tmp_path / "precious", tmp_path / "x.h5"
    precious.write_text("mine")
    kind(precious, tmp_path / f"x.h5{suffix}")
    if suffix == ".lock":
        with pytest.raises(UserError, match=r"x\.h5\.lock is not a lock file"), Lock(path) as lock:
            lock.take()
    else:
        logs.create(path).close()
        assert costlog.read(path)["attrs"]["status"] == "running"
    assert precious.read_text() == "mine"


@pytest.mark.parametrize("kind", [os.mkdir, os.mkfifo])
def test_a_lock_that_is_no_file_is_refused(tmp_path: Path, kind: Callable[..., None]):
    kind(tmp_path / "x.h5.lock")
    with pytest.raises(UserError, match="is not a lock file"), Lock(tmp_path / "x.h5") as lock:
        lock.take()


@pytest.mark.parametrize("how", ["replaced", "moved", "removed"])
def test_a_log_that_is_no_longer_there_ends_the_run(tmp_path: Path, how: str):
    path, other = tmp_path / "x.h5", tmp_path / "other.h5"
    logs.create(other).finish("completed")
    before = other.read_bytes()
    writer = logs.create(path)
    writer.append_round(*logs.make_round(0))
    if how == "replaced":
        other.replace(path)
    else:
        path.rename(tmp_path / "moved.h5")
        if how == "removed":
            (tmp_path / "moved.h5").unlink()
    with pytest.raises(RunFault, match=r"was replaced, moved or removed .* the 1 earlier rounds are in the old file"):
        writer.append_round(*logs.make_round(1))
    with pytest.raises(RunFault):
        writer.finish("completed")
    if how == "replaced":
        assert path.read_bytes() == before
    if how == "moved":
        assert costlog.read(tmp_path / "moved.h5")["rounds"]["round"].tolist() == [0]


def test_a_clock_that_is_ahead_keeps_nobody_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "x.h5"
    logs.create(path).close()
    data = bytearray(path.read_bytes())
    data[4096 : 4096 * 40] = bytes(np.random.default_rng(0).integers(0, 256, 4096 * 39, np.uint8))
    path.write_bytes(data)
    os.utime(path, (2**32, 2**32))
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)
    with pytest.raises(UserError, match="is damaged"):
        costlog.read(path)
    assert len(pauses) < 4


def reseal(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Change a manifest and give it the digest that fits."""
    tree = json.loads((folder / manifests.FILE).read_text())
    tree.pop("sha256")
    edit(tree)
    digest = hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()
    (folder / manifests.FILE).write_text(json.dumps(tree | {"sha256": digest}))


def _file(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda tree: tree["files"][0].update(values)


MANIFESTS = {
    "a path that leads out": (_file(name="../../x.h5"), "files.0.name"),
    "an absolute path": (_file(name="/etc/passwd"), "files.0.name"),
    "the folder": (_file(name=".."), "files.0.name"),
    "an escape sequence": (_file(name="\x1b[31m"), "files.0.name"),
    "a name that is none": (_file(name=3), "files.0.name"),
    "negative bytes": (_file(bytes=-1), "damaged"),
    "bytes as text": (_file(bytes="many"), "files.0.bytes"),
    "clients that are none": (_file(clients=["a"]), "files.0.clients"),
    "clients of the server": (_file(clients=[1]), "files.0.clients"),
    "a file given twice": (lambda tree: tree["files"].append(tree["files"][0]), "files."),
    "files that are none": (lambda tree: tree.update(files=[3]), "files.0"),
    "no list of files": (lambda tree: tree.update(files={"a": 1}), "files"),
    "no files": (lambda tree: tree.update(files=[]), "according to the log, is missing"),
    "another round": (lambda tree: tree.update(rounds=7), "rounds is 7"),
    "rounds that are none": (lambda tree: tree.update(rounds="1"), "rounds"),
    "another owner": (lambda tree: tree.update(owner=[]), "owner"),
}


@pytest.mark.parametrize("odd", MANIFESTS)
def test_a_manifest_is_checked_for_what_it_says(log: Path, capsys: pytest.CaptureFixture, odd: str):
    edit, words = MANIFESTS[odd]
    (folder,) = checkpoints(log)
    reseal(folder, edit)
    line = refusal(capsys, log, "--trust-log")
    assert words in line
    assert str(folder) in line


@pytest.mark.parametrize("name", ["manifest.json", "server.safetensors", ""])
def test_links_in_a_checkpoint_are_refused(log: Path, tmp_path: Path, capsys: pytest.CaptureFixture, name: str):
    (folder,) = checkpoints(log)
    file = folder / name
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    assert str(file) in refusal(capsys, log, "--trust-log")


def _tensors(edit: Callable[[dict[str, np.ndarray]], None], name: str = "server") -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (path,) = folder.glob(f"{name}*.safetensors")
        tensors = load_file(path)
        edit(tensors)
        save_file(tensors, path)

        def entry(tree: dict[str, Any]) -> None:
            for each in tree["files"]:
                if each["name"] == path.name:
                    each |= {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}

        reseal(folder, entry)

    return apply


def _first(end: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[dict[str, np.ndarray]], None]:
    def edit(tensors: dict[str, np.ndarray]) -> None:
        key = min(key for key in tensors if key.endswith(end))
        tensors[key] = change(tensors[key])

    return edit


def _no_private(tensors: dict[str, np.ndarray]) -> None:
    del tensors[min(key for key in tensors if key.endswith("/private"))]


TENSORS = {
    "a student in half": (_tensors(lambda t: t.update(replica=t["replica"].astype("f2"))), "replica"),
    "a student of another shape": (_tensors(lambda t: t.update(replica=t["replica"][None].copy())), "replica"),
    "no student": (_tensors(lambda t: t.update(other=t.pop("replica"))), "replica"),
    "a tensor too many": (_tensors(lambda t: t.update({"odd/x": np.zeros(3)})), "odd/x"),
    "a client of no file": (_tensors(lambda t: t.update({"99/private": np.zeros(3)}), "clients"), "99/private"),
    "a client that is none": (_tensors(lambda t: t.update({"a/private": np.zeros(3)}), "clients"), "a/private"),
    "a teacher in float64": (_tensors(_first("/private", lambda x: x.astype("f8")), "clients"), "private"),
    "a short teacher": (_tensors(_first("/private", lambda x: x[:-1].copy()), "clients"), "private"),
    "no teacher": (_tensors(_no_private, "clients"), "private"),
    "short moments": (_tensors(_first("optimizer.private.exp_avg", lambda x: x[:-1].copy()), "clients"), "exp_avg"),
}


@pytest.mark.parametrize("odd", TENSORS)
def test_tensors_are_checked_against_the_run(log: Path, capsys: pytest.CaptureFixture, odd: str):
    edit, words = TENSORS[odd]
    (folder,) = checkpoints(log)
    edit(folder)
    line = refusal(capsys, log, "--trust-log")
    assert words in line
    assert ".safetensors" in line
