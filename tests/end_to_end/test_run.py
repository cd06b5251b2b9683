"""The run command: its log, its summary, --output, --dry-run, one process without MPI."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from command import COMMAND, TINY, Command, assert_refused
from loaded_modules import loaded_after
from mpirun import find, mpirun, run
from plain_digits import PLAIN_DIGITS

from fedkd_mpi import costlog
from fedkd_mpi.config.codecs import CODECS
from fedkd_mpi.config.load import load

HELPERS = Path(__file__).parents[1] / "helpers"


def test_the_default_output_is_named_after_run_and_date(command: Command):
    code, out, err = command("name=mine")
    assert (code, err) == (0, "")
    (path,) = Path("runs").glob("*.h5")
    assert re.fullmatch(r"mine-\d{8}-\d{6}\.h5", path.name)
    assert str(path) in out
    assert costlog.read(path)["attrs"]["status"] == "completed"


def test_all_processes_agree_on_the_default_output(mpi_vendor: str, tmp_path: Path):
    # The processes of a large job reach this point at different seconds.
    finished = mpirun(2, HELPERS / "worker_late_ranks.py", *COMMAND[2:], mpi=mpi_vendor, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    (log,) = (tmp_path / "runs").glob("*.h5")
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {log.name, f"{log.name}.checkpoints"}


def test_overwrite_replaces_a_log(command: Command):
    path = Path("deep/er/own.h5")
    assert command("--output", path, "seed=1")[0] == 0
    assert command("--output", path, "seed=2")[0] == 2
    assert costlog.read(path)["attrs"]["seed"] == 1
    assert command("--output", path, "seed=2", "--overwrite")[0] == 0
    assert costlog.read(path)["attrs"]["seed"] == 2
    assert {file.name for file in path.parent.iterdir()} == {"own.h5", "own.h5.checkpoints"}


def test_the_summary_says_what_the_log_says(command: Command):
    code, out, _ = command("--output", "own.h5", "num_clients=5", "cohort_size=2", "rounds=4", "seed=3")
    assert code == 0
    rounds = costlog.read("own.h5")["rounds"]
    up, down, catchup = (int(rounds[f"{name}_bytes"].sum()) for name in ("uplink", "downlink", "catchup"))
    assert catchup > 0
    for number in (up, down, catchup):
        assert f"({number:,} bytes)" in out
    for role in ("student", "teacher"):
        factor = rounds[f"{role}_dense_bytes"].sum() / (up + down + catchup)
        assert re.search(rf"dense exchange of the {role} would cost[^\n]*{factor:.2f} times as much", out)
    for column, label in (
        ("global_student_accuracy", "global student, global test set: accuracy"),
        ("student_accuracy", "students after local training, own test samples: accuracy"),
        ("teacher_accuracy", "teachers, own test samples: accuracy"),
    ):
        assert re.search(rf"{label}[^\n]* {rounds[column][-1]:.4f}", out)
    assert "own.h5" in out
    assert "round 4/4" in out


def test_the_log_describes_the_run(command: Command):
    assert command("--output", "own.h5", "compression.t_end=0.96")[0] == 0
    log = costlog.read("own.h5")
    attrs = log["attrs"]
    assert (attrs["world_size"], attrs["num_clients"], attrs["seed"], attrs["status"]) == (1, 4, 0, "completed")
    Path("again.yaml").write_text(attrs["config"])
    assert load(Path("again.yaml")).digest() == attrs["config_digest"]
    assert log["layers"]["name"].tolist() == ["layers.0.weight", "layers.0.bias", "head.weight", "head.bias"]
    assert log["layers"]["shape"].tolist() == ["8x64", "8", "10x8", "10"]
    assert log["clients"]["label_histogram"].shape == (4, 10)
    samples = log["clients"]["train_samples"] + log["clients"]["test_samples"]
    assert log["clients"]["label_histogram"].sum(axis=1).tolist() == samples.tolist()
    assert log["rounds"]["threshold"].tolist() == pytest.approx([0.95, 0.955, 0.96])


def test_teachers_alone_exchange_nothing(command: Command):
    code, out, err = command("--output", "own.h5", "method=local")
    assert (code, err) == (0, "")
    log = costlog.read("own.h5")
    assert log["attrs"]["status"] == "completed"
    assert not any(values.any() for name, values in log["rounds"].items() if "bytes" in name and "teacher" not in name)
    assert log["uplink"]["layer_bytes"].shape == (0, 0)
    assert log["downlink"]["layer_bytes"].shape == (3, 0)
    assert np.isfinite(log["rounds"]["teacher_accuracy"]).all()
    assert np.isnan(log["rounds"]["global_student_accuracy"]).all()
    assert "bytes" not in out


def test_a_dry_run_tells_sizes_and_writes_nothing(command: Command, tmp_path: Path):
    code, out, err = command("--dry-run")
    assert (code, err) == (0, "")
    teacher, student = 64 * 16 + 16 + 16 * 10 + 10, 64 * 8 + 8 + 8 * 10 + 10
    assert f"mlp, {teacher:,} numbers" in out
    assert f"mlp, {student:,} numbers in 4 layers" in out
    dense = 2 * 4 * student * 4
    assert f"{dense / 1000:.2f} kB up and down, all clients" in out
    assert not list(tmp_path.iterdir())
    assert_refused(command("--dry-run", "num_clients=2000"), "num_clients=2000")


def test_a_dry_run_knows_its_launcher(tmp_path: Path):
    if find("openmpi") is None:
        pytest.skip("needs Open MPI")
    done = mpirun(3, *COMMAND, "--dry-run", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.count("3: 2 of 4 clients on the fullest, 4 per round") == 1
    assert not list(tmp_path.iterdir())


def test_a_run_does_not_load_torchs_compiler(tmp_path: Path):
    # a second of CPU time in each of 33 processes; any class of torch.optim does
    how = [*TINY, PLAIN_DIGITS, "optimizer.momentum=0"]
    runs = [[*how, f"optimizer.name={name}", "--output", str(tmp_path / name)] for name in ("sgd", "adam")]
    modules = loaded_after(f"from fedkd_mpi.run import main\nassert [main(each) for each in {runs}] == [0, 0]")
    assert "torch" in modules
    assert not modules & {"torch._dynamo", "sympy", "matplotlib", "transformers", "pydicom", "skimage"}


def test_without_mpi4py_one_process_runs(tmp_path: Path):
    command = [sys.executable, HELPERS / "worker_without.py", "mpi4py", "run"]
    done = run([*command, *COMMAND[2:], "--output", "own.h5"], cwd=tmp_path)
    assert done.returncode == 0
    assert len(done.stderr.splitlines()) == 1
    assert "no MPI library was found" in done.stderr
    assert "the run continues with one process" in done.stderr
    assert costlog.read(tmp_path / "own.h5")["attrs"]["status"] == "completed"


@pytest.mark.parametrize("codec", ["svd", "rdsvd", "topk"])
def test_a_dry_run_predicts_the_first_message_to_the_byte(codec: str, command: Command):
    """The measured update is that of client 0 in the first round where all its steps were run."""
    keys = [f"compression.codec={codec}", "compression.t_start=0.9", "compression.t_end=0.9"]
    facts = json.loads(command("--dry-run", "--json", *keys)[1])
    assert facts["measured_steps"] == facts["training_steps"]
    assert facts["seconds_per_round"] > facts["seconds_per_step"] > 0
    assert command("--output", "own.h5", *keys)[0] == 0
    uplink = costlog.read("own.h5")["uplink"]
    first = uplink["bytes"][(uplink["client"] == 0) & (uplink["round"] == 0)]
    assert facts["update_bytes"][0] == {"codec": codec, "first": first[0], "last": first[0]}
    assert [each["codec"] for each in facts["update_bytes"][1:]] == [name for name in CODECS if name != codec]
