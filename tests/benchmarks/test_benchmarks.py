"""The presets of benchmarks: complete, divisible, and planned without their data; no task loads what another needs."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from command import Command, assert_refused
from loaded_modules import loaded_after

from fedkd_mpi import datasets
from fedkd_mpi.config.load import load
from fedkd_mpi.config.shipped import presets
from fedkd_mpi.datasets.low_dose import low_dose
from fedkd_mpi.datasets.mayo_ct import read_series
from fedkd_mpi.datasets.pictures import read_pictures
from fedkd_mpi.errors import UserError
from fedkd_mpi.simulation.setup import divide
from fedkd_mpi.tasks.denoising import Denoising

PRESETS = {path.stem: path for path in sorted((presets() / "benchmarks").glob("*.yaml"))}
CLASSES = {"cifar10": 2, "cifar100": 10, "flowers102": 10, "tiny_imagenet": 20}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_says_whence_it_is_and_divides_data_of_the_official_size(name: str):
    comment = [line for line in PRESETS[name].read_text(encoding="utf-8").splitlines() if line.startswith("# ")]
    for word in ("Source:", "Known of it:", "Our choice:", "Needs:"):
        assert any(line.startswith(f"# {word}") for line in comment)
    config = load(Path(f"benchmarks/{name}"))
    assert config.name == name
    data = datasets.load_or_stand_in(config.data.name, None, 0, config.data.options())
    labels = data.train["group"] if name == "ct" else data.train["y"]
    clients = divide(config, labels, data.train.get("group"))
    assert sum(len(train) + len(test) for train, test in clients) == len(labels)
    if name == "ct":
        return
    assert config.num_clients == (10 if name.endswith("10_clients") else 20)
    assert len({str(teacher) for teacher in config.teachers}) == 5
    assert config.network("student").name == "cnn"
    for train, test in clients:
        assert len(test) == pytest.approx(0.25 * (len(train) + len(test)), abs=1)
        if name.endswith("pathological"):
            assert len(np.unique(labels[np.r_[train, test]])) == CLASSES[config.data.name]


SMALLER = {  # one preset of each data set; of the CT networks, small ones
    "cifar10_dirichlet": ["local.batch_size=2"],
    "cifar100_10_clients": ["local.batch_size=2"],
    "flowers102_pathological": ["local.batch_size=2", "data.size=32"],
    "tiny_imagenet_pathological": ["local.batch_size=2"],
    "ct": ["local.batch_size=2", "teacher.width=4", "student.width=4"],
}


@pytest.mark.parametrize("name", SMALLER)
def test_dry_run_without_the_data(command: Command, name: str, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("skimage" if name == "ct" else "numpy", reason="scikit-image is not installed (extra ct)")
    monkeypatch.setattr("conftest.TINY", [])
    code, out, err = command("--config", f"benchmarks/{name}", "--dry-run", "device=cpu", *SMALLER[name])
    assert (code, err) == (0, "")
    assert "is missing: made-up samples" in out
    assert "memory of the fullest process" in out


def test_a_run_without_data_is_refused_all_the_same(command: Command, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("conftest.TINY", [])
    assert_refused(command("--config", "cifar10.yaml", "--output", "x.h5"), "set FEDKD_DATA or data.root")


def test_a_run_on_digits_loads_nothing_of_the_other_tasks(tmp_path: Path):
    log = tmp_path / "digits.h5"
    modules = loaded_after(
        "from fedkd_mpi.run import main\n"
        f"main(['rounds=1', 'num_clients=2', 'local.epochs=1', 'device=cpu', '--output', {str(log)!r}])"
    )
    assert log.exists()
    assert "sklearn" in modules
    assert not modules & {"PIL", "pydicom", "skimage", "transformers", "tokenizers", "matplotlib"}


def test_the_data_sets_are_importable_with_numpy_alone():
    modules = loaded_after(
        "import fedkd_mpi.datasets.cifar, fedkd_mpi.datasets.flowers, fedkd_mpi.datasets.tiny_imagenet\n"
        "import fedkd_mpi.datasets.mayo_ct, fedkd_mpi.datasets.low_dose"
    )
    assert not modules & {"torch", "PIL", "scipy", "pydicom", "skimage", "sklearn", "mpi4py"}


@pytest.mark.parametrize(
    ("library", "call", "extra"),
    [
        ("PIL", lambda: read_pictures([Path("x.jpg")], 8, resize=True), "images"),
        ("pydicom", lambda: read_series(Path()), "ct"),
        ("skimage.metrics", lambda: Denoising({"window": [0, 1]}, {"x": np.zeros((1, 1, 8, 8), np.int16)}), "ct"),
        ("skimage.transform", lambda: low_dose(np.zeros((8, 8)), 1.0, 10.0, 4, np.random.default_rng(0)), "ct"),
    ],
)
def test_a_missing_extra_is_named(library, call, extra, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("slice.dcm").write_bytes(b"")
    monkeypatch.setitem(sys.modules, library, None)  # the import then fails
    with pytest.raises(UserError, match=rf"pip install 'fedkd-mpi\[{extra}\]'"):
        call()
