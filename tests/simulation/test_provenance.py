"""Where a run comes from, in its log; and runs that go on with other data, libraries or processors than before."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import own_files
import pytest
from command import TINY, Command
from mpirun import find, mpirun
from plain_digits import PLAIN_DIGITS
from sessions import assert_same_run

from fedkd_mpi import costlog, datasets, info
from fedkd_mpi.datasets import opened
from fedkd_mpi.run import main
from fedkd_mpi.simulation import provenance

ONE_ROUND, FOREVER = "time_limit=0.001", "time_limit=null"


@pytest.fixture(scope="module")
def run_of_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, a partition file and the log of a run of them that stopped after its first round."""
    folder = tmp_path_factory.mktemp("files")
    own_files.arrays(folder / "x.npz")
    chosen = [*TINY, "data.name=npz", f"data.path={folder / 'x.npz'}", "partition.min_samples=4"]
    with pytest.raises(SystemExit, match=r"^0$"):
        main([*chosen, "--dry-run", "--save-partition", str(folder / "who.json")])
    chosen += ["partition.kind=file", f"partition.path={folder / 'who.json'}", ONE_ROUND]
    assert main([*chosen, "--output", str(folder / "x.h5")]) == 75
    return folder


@pytest.fixture
def log(run_of_files: Path, tmp_path: Path) -> Path:
    """The log of that run, to be changed; what it reads is restored afterwards."""
    copy = tmp_path / "files"
    shutil.copytree(run_of_files, copy)
    kept = {name: (run_of_files / name).read_bytes() for name in ("x.npz", "who.json")}
    yield copy / "x.h5"
    for name, content in kept.items():
        (run_of_files / name).write_bytes(content)


def refusal(in_process: Command, *arguments: object) -> str:
    code, out, err = in_process(main, "--resume", *arguments)
    assert (code, out, len(err.splitlines())) == (2, "", 1), err
    return err


def test_a_partition_with_two_samples_exchanged_is_refused_by_client(
    log: Path, run_of_files: Path, in_process: Command
) -> None:
    """Sizes and label histograms of all clients stay as they were."""
    file = run_of_files / "who.json"
    tree = json.loads(file.read_text())
    y = datasets.load("npz", None, 0, {"path": str(run_of_files / "x.npz")}).train["y"]
    clients = tree["clients"]
    first, second = clients[1]["train"], clients[3]["train"]
    at, to = next((at, to) for at, one in enumerate(first) for to, two in enumerate(second) if y[one] == y[two])
    first[at], second[to] = second[to], first[at]
    file.write_text(json.dumps(tree))
    before = costlog.read(log)["clients"]
    line = refusal(in_process, log, ONE_ROUND)
    assert f"the partition is not that of {log}: client 1 and 1 more clients have other samples" in line
    assert f"partition.path={file}" in line
    assert costlog.read(log)["clients"]["digest"].tolist() == before["digest"].tolist()


def test_a_changed_pixel_is_refused_by_the_name_of_its_array(
    log: Path, run_of_files: Path, in_process: Command
) -> None:
    file = run_of_files / "x.npz"
    arrays = dict(np.load(file))
    arrays["x"][7, 3, 2] ^= 1
    np.savez(file, **arrays)
    line = refusal(in_process, log, ONE_ROUND)
    assert f"the data are not those of {log}: " in line
    assert "train/x" in line or "test/x" in line
    assert "/y" not in line
    assert costlog.read(log)["starts"]["started"].size == 1, "a refused start is no start"


def test_unchanged_data_go_on_and_every_start_is_listed(log: Path, run_of_files: Path, tmp_path: Path) -> None:
    assert main(["--resume", str(log), ONE_ROUND]) == 75
    if find("openmpi"):
        done = mpirun(2, "-m", "fedkd_mpi.run", "--resume", log, FOREVER, env={"OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr
    else:
        assert main(["--resume", str(log), FOREVER]) == 0
    starts = costlog.read(log)["starts"]
    assert starts["first_round"].tolist() == [0, 1, 2]
    ranks = [1, 1, 2 if find("openmpi") else 1]
    assert starts["world_size"].tolist() == ranks
    assert starts["hosts"].tolist() == [f"{os.uname().nodename} x{count}" for count in ranks]
    times = [time for pair in zip(starts["started"], starts["ended"], strict=True) for time in pair]
    assert times == sorted(times)
    assert "" not in times
    assert set(starts["python"]) == {sys.version.split()[0]}
    assert set(starts["h5py"]) == {h5py.__version__}
    whole = tmp_path / "whole.h5"
    assert main(["--config", str(log), FOREVER, "--output", str(whole)]) == 0
    assert_same_run(whole, log)


def test_files_that_were_read_are_listed_with_their_digests(run_of_files: Path) -> None:
    files = costlog.read(run_of_files / "x.h5")["files"]
    paths = [run_of_files / "who.json", run_of_files / "x.npz"]
    assert files["path"].tolist() == [str(path) for path in paths]
    assert files["bytes"].tolist() == [path.stat().st_size for path in paths]
    assert files["digest"].tolist() == [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


def test_a_folder_of_many_files_has_the_digest_that_sha256sum_gives(tmp_path: Path) -> None:
    for number in range(opened.MOST + 20):
        path = tmp_path / f"{number % 7}" / f"{number} ü.bin"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes([number]) * number)
    with opened.recorded() as found:
        for path in sorted(tmp_path.rglob("*.bin"))[1:]:
            path.read_bytes()
        (tmp_path / "written").write_text("not read")
    columns = opened.described(found)
    assert columns["path"].tolist() == [f"{tmp_path}/"]
    assert columns["count"].tolist() == [opened.MOST + 19]
    sorted(tmp_path.rglob("*.bin"))[0].unlink()
    (tmp_path / "written").unlink()
    command = "LC_ALL=C; find * -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum"
    told = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert columns["digest"].tolist() == [told.stdout.split()[0]]
    single = opened.described(found[1:3])
    assert single["digest"].tolist() == [hashlib.sha256(path.read_bytes()).hexdigest() for path in found[1:3]]


def test_a_saved_folder_of_datasets_is_listed_though_it_is_mapped(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    folder = own_files.saved(tmp_path / "saved")
    chosen = [
        "data.name=hf",
        f"data.path={folder}",
        "data.image=image",
        "data.label=label",
        "task=image_classification",
    ]
    assert main([*TINY, *chosen, "rounds=1", "partition.min_samples=2", "--output", str(tmp_path / "x.h5")]) == 0
    listed = set(costlog.read(tmp_path / "x.h5")["files"]["path"].tolist())
    assert listed == {str(path) for path in folder.rglob("*") if path.is_file()}


def test_no_secret_and_no_variable_that_was_not_asked_for_is_kept() -> None:
    kept = {"FEDKD_DATA": "/d", "OMP_NUM_THREADS": "2", "OMPI_MCA_btl": "^ofi", "SLURM_JOB_ID": "7"}
    kept |= {"MKL_CBWR": "AVX2", "CUDA_VISIBLE_DEVICES": "1", "FEDKD_NOTE": "two lines"}
    dropped = {"AWS_SECRET_ACCESS_KEY": "s3cret", "FEDKD_TOKEN": "s3cret", "OMPI_MCA_orte_hnp_uri": "s3cret"}
    dropped |= {"OMPI_MCA_orte_precondition_transports": "s3cret", "FEDKD_db_password": "s3cret", "HOME": "/home/me"}
    given = kept | dropped | {"FEDKD_NOTE": "two\nlines"}
    assert provenance.environment(given) == dict(sorted(kept.items()))


def test_a_log_holds_no_secret_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDKD_API_KEY", "s3cret-1")
    monkeypatch.setenv("GITHUB_TOKEN", "s3cret-2")
    monkeypatch.setenv("FEDKD_HINT", "kept")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "4700")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "11")
    assert main([*TINY, PLAIN_DIGITS, "rounds=1", "--output", str(tmp_path / "x.h5")]) == 0
    content = (tmp_path / "x.h5").read_bytes()
    assert b"s3cret" not in content
    starts = costlog.read(tmp_path / "x.h5")["starts"]
    assert "FEDKD_HINT=kept" in starts["environment"][0].split("\n")
    assert starts["slurm_job_id"].tolist() == ["4711 (4700_11)"]
    assert starts["command"].tolist() == [shlex.join(sys.orig_argv)]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (["train.py", "--api-key=s3cret", "rounds=3"], ["train.py", "--api-key=***", "rounds=3"]),
        (["train.py", "--token", "s3cret", "rounds=3"], ["train.py", "--token", "***", "rounds=3"]),
        (["train.py", "--no-auth", "--rounds", "3"], ["train.py", "--no-auth", "--rounds", "3"]),
        (["-m", "fedkd_mpi.run", "data.options.password=s3cret"], ["-m", "fedkd_mpi.run", "data.options.password=***"]),
        (["DB_TOKEN=s3cret", "url=https://me:s3@cret@host/a"], ["DB_TOKEN=***", "url=https://***@host/a"]),
        (["--index", "https://s3cret@host/simple?to=a@b"], ["--index", "https://***@host/simple?to=a@b"]),
        (["data.tokenizer=words", "data.path=a@b", "x=http://h/a@b"], None),
    ],
)
def test_secrets_of_a_command_line_are_hidden_and_all_else_is_kept(given: list[str], kept: list[str] | None) -> None:
    assert shlex.split(provenance.command(["python", *given])) == ["python", *(kept or given)]


def test_a_password_in_the_url_of_a_variable_is_hidden() -> None:
    assert provenance.environment({"FEDKD_DATA": "s3://me:s3cret@host/d"}) == {"FEDKD_DATA": "s3://***@host/d"}


def test_bytes_that_are_not_utf8_are_logged_as_escapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = os.fsdecode(b"caf\xe9")
    monkeypatch.setenv("FEDKD_NOTE", odd)
    monkeypatch.setattr(sys, "orig_argv", ["python", odd])
    assert main([*TINY, PLAIN_DIGITS, "rounds=1", "--output", str(tmp_path / "x.h5")]) == 0
    starts = costlog.read(tmp_path / "x.h5")["starts"]
    assert "FEDKD_NOTE=caf\\udce9" in starts["environment"][0].split("\n")
    assert shlex.split(starts["command"][0]) == ["python", "caf\\udce9"]


def test_a_warning_about_other_bits_controls_no_terminal() -> None:
    now = dict.fromkeys(provenance.BITS, "new")
    text = provenance.changed(now | {"cpu": "\x1b]0;title\x07\nold"}, now)
    assert text is not None
    assert text.isprintable()


@pytest.mark.parametrize(("column", "word"), [("torch", "torch"), ("numpy", "numpy"), ("cpu", "the processor")])
def test_a_run_that_goes_on_with_other_bits_says_so_in_a_line_and_an_event(
    log: Path, in_process: Command, column: str, word: str
) -> None:
    with h5py.File(log, "r+") as file:
        size = file[f"starts/{column}"].dtype.itemsize
        file[f"starts/{column}"][0] = b"old"[:size]
    now = provenance.processor() if column == "cpu" else costlog.read(log)["starts"]["mpi4py"][0]
    code, out, _ = in_process(main, "--resume", log, ONE_ROUND)
    lines = [line for line in out.splitlines() if "last bits may differ" in line]
    assert (code, len(lines)) == (75, 1)
    assert f"{word} was old and is " in lines[0]
    assert column != "cpu" or now in lines[0]
    events = costlog.read(log)["events"]
    warned = [text for level, text in zip(events["level"], events["message"], strict=True) if level == "warning"]
    assert [f"fedkd_mpi: {text}" for text in warned] == lines
    code, out, _ = in_process(main, "--resume", log, ONE_ROUND)
    assert (code, "last bits" in out) == (0, False), "it goes on with what the last start had"


def test_config_of_a_log_runs_it_again_and_only_trusted_code(tmp_path: Path, in_process: Command) -> None:
    first, again, other = (tmp_path / f"{name}.h5" for name in ("first", "again", "other"))
    assert main([*TINY, PLAIN_DIGITS, "--output", str(first)]) == 0
    code, out, err = in_process(main, "--config", first, "--output", again)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert f"--config {first} {PLAIN_DIGITS}" in err
    assert not again.exists()
    assert main(["--config", str(first), "--trust-log", "--output", str(again)]) == 0
    assert_same_run(first, again)
    assert main(["--config", str(first), PLAIN_DIGITS, "rounds=1", "seed=7", "--output", str(other)]) == 0
    assert costlog.read(other)["attrs"]["seed"] == 7
    code, _, err = in_process(main, "--trust-log", "--config", "digits.yaml")
    assert (code, "digits.yaml is no log" in err) == (2, True)


def repository(folder: Path) -> Callable[..., None]:
    def git(*arguments: str) -> None:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True)

    folder.mkdir()
    git("init")
    return git


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_of_the_working_directory_and_whether_it_was_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mine"
    git = repository(folder)
    monkeypatch.chdir(folder)
    assert provenance.commits()["folder_commit"] == "", "nothing was committed"
    (folder / "model.py").write_text("a = 1\n")
    git("add", ".")
    git("commit", "-m", "first")
    (folder / "x.h5").write_text("a log is not tracked")
    clean = provenance.commits()["folder_commit"]
    assert len(clean) == 40
    (folder / "model.py").write_text("a = 2\n")
    assert provenance.commits()["folder_commit"] == f"{clean}-dirty"
    repository(tmp_path / "other")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    assert provenance.commits()["folder_commit"] == f"{clean}-dirty"
    package = provenance.commits()["package_commit"]
    assert package == "" or len(package.partition("-")[0]) == 40
    monkeypatch.setenv("PATH", str(tmp_path))
    assert set(provenance.commits().values()) == {""}, "git is not needed"


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_asking_git_runs_no_program_of_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "theirs"
    git = repository(folder)
    (folder / "a").write_text("")
    git("add", ".")
    git("commit", "-m", "first")
    hook = tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path / 'ran'}\n")
    hook.chmod(0o755)
    git("config", "core.fsmonitor", str(hook))
    monkeypatch.chdir(folder)
    assert len(provenance.commits()["folder_commit"]) == 40
    assert not (tmp_path / "ran").exists()


def test_info_prints_starts_and_files(run_of_files: Path, in_process: Command) -> None:
    log = run_of_files / "x.h5"
    code, out, _ = in_process(info.main, log)
    digest = hashlib.sha256((run_of_files / "x.npz").read_bytes()).hexdigest()
    assert code == 0
    assert "\nstart 1 of 1\n" in out
    assert f"\n{digest}  {run_of_files / 'x.npz'}  " in out
    facts = json.loads(in_process(info.main, log, "--json")[1])
    assert facts["starts"][0]["first_round"] == 0
    assert [row["digest"] for row in facts["files"]][1] == digest
