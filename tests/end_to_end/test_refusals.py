"""What the run command refuses: one line that names the cause, exit code 2, and no file left behind."""

from __future__ import annotations

import gzip
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from command import COMMAND, Command, assert_refused
from mpirun import mpirun, run

from fedkd_mpi import costlog


def write_mnist(folder: Path, **changed: bytes) -> None:
    """Write a folder in the layout of MNIST: 60 and 20 images of 4x4 pixels; `changed` replaces files' contents."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    for part, count in (("train", 60), ("t10k", 20)):
        images, labels = draw.integers(0, 256, (count, 4, 4), np.uint8), np.arange(count, dtype=np.uint8) % 10
        files = {
            f"{part}-images-idx3-ubyte": struct.pack(">BBBBIII", 0, 0, 8, 3, *images.shape) + images.tobytes(),
            f"{part}-labels-idx1-ubyte": struct.pack(">BBBBI", 0, 0, 8, 1, count) + labels.tobytes(),
        }
        for name, content in files.items():
            content = changed.get(name.replace("-", "_"), content)
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))


MNIST = ["data.name=mnist", "data.root=.", "partition.kind=iid", "partition.alpha=null"]
IMAGES = struct.pack(">BBBBIII", 0, 0, 8, 3, 60, 4, 4)
LABELS = struct.pack(">BBBBI", 0, 0, 8, 1, 60)


def test_real_files_are_learned_from(command: Command, tmp_path: Path):
    write_mnist(tmp_path / "mnist")
    code, _, err = command(*MNIST, "--output", "own.h5")
    assert (code, err) == (0, "")
    assert costlog.read("own.h5")["clients"]["train_samples"].sum() == 48


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"train_images_idx3_ubyte": b"PK" + IMAGES[2:] + bytes(960)}, "train-images-idx3-ubyte.gz: not an IDX file"),
        ({"train_images_idx3_ubyte": IMAGES + bytes(959)}, "train-images-idx3-ubyte.gz: truncated: 975 bytes"),
        (
            {"train_labels_idx1_ubyte": LABELS + bytes(59) + b"\x0a"},
            "train-labels-idx1-ubyte.gz: record 59 has label 10",
        ),
    ],
    ids=["wrong magic", "truncated", "label out of range"],
)
def test_malformed_data_are_refused(command: Command, tmp_path: Path, changed: dict[str, bytes], words: str):
    write_mnist(tmp_path / "mnist", **changed)
    assert_refused(command(*MNIST, "--output", "own.h5"), words)
    assert not Path("own.h5").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["data.name=fashion_mnist", "data.root=nowhere"], "nowhere/fashion-mnist: No such file or directory"),
        (["data.name=fashion_mnist"], "set FEDKD_DATA or data.root to the folder that contains fashion-mnist/"),
        (["data.name=mnits"], "data.name=mnits is unknown; did you mean mnist?"),
        (["data.name=nowhere:load"], "data.name=nowhere:load cannot be loaded: No module named 'nowhere'"),
        (["num_clients=2000"], "num_clients=2000 with partition.min_samples=8 needs 16000 samples"),
        (["num_clients=150", "partition.min_samples=9"], "partition"),
        (["compression.codec=swd"], "compression.codec=swd is unknown; did you mean svd?"),
        (["task=images"], "task=images is unknown"),
        (["compression.schedule=x"], "compression.schedule=x: must be 'linear', or package.module:Name"),
        (["device=cuda:7"], "device=cuda:7, but "),
        (["student.hidden=[]"], "the student has no hidden layers; set distillation.hidden=false"),
        (["distillation.shared_map=true", "teacher.hidden=[16,12]", "student.hidden=[8,4]"], "distillation.shared_map"),
        (["teacher={name: cnn, learning_rate: 0.1}"], "teacher: "),
        (["partition.kind=natural", "partition.alpha=null"], "natural"),
        (["--output", "."], "cannot write the log .: it is a folder"),
        (["--output", "old.h5"], "the log old.h5 exists: choose another with --output, or replace it with --overwrite"),
        (["--output", "old.h5/new.h5"], "cannot write the log old.h5/new.h5"),
        (["--output", "/proc/new.h5"], "cannot write the log /proc/new.h5"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_run_that_cannot_be_is_refused_in_one_line(
    command: Command, tmp_path: Path, arguments: list[str], words: str
):
    (tmp_path / "old.h5").write_text("an older log")
    assert_refused(command(*arguments), words)
    assert (tmp_path / "old.h5").read_text() == "an older log"
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "old.h5"]


def test_under_a_launcher_a_refusal_is_told_once(mpi_vendor: str, tmp_path: Path):
    arguments = [*COMMAND, "data.name=fashion_mnist", "data.root=/nowhere"]
    done = mpirun(2, *arguments, mpi=mpi_vendor, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("/nowhere/fashion-mnist: No such file or directory") == 1
    assert done.stderr.count("fedkd_mpi") == 1
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("*.h5"))


def test_processes_that_do_not_see_one_another_are_refused(tmp_path: Path):
    environment = {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "4"}
    done = run([sys.executable, *COMMAND], env=environment, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "fedkd_mpi: srun started 4 processes, but " in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("key", ["teacher.learning_rate", "optimizer.weight_decay"])
def test_a_dry_run_that_diverges_says_so_in_one_line(command: Command, key: str):
    words = "round 1, client 0, layer teacher.layers.0.weight: the private state (teacher and W_h) is not finite"
    code, out, err = command(f"{key}=9000000000000000000", "--dry-run")
    assert (code, out, len(err.splitlines())) == (1, "", 1), err
    assert f"--dry-run: {words}" in err
