"""The settings in which FedKD is quoted: complete, literal, and played in miniature as the user plays them."""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import official_layouts
import pytest
import torch
import torchvision_stand_in
import yaml
from command import Command
from phantoms import write_patients

from fedkd_mpi import costlog, datasets, models, sweep
from fedkd_mpi.config.load import load
from fedkd_mpi.config.shipped import presets
from fedkd_mpi.report.__main__ import main as report
from fedkd_mpi.run import main as run
from fedkd_mpi.simulation.setup import divide

EVERY = {path.stem: path for path in sorted((presets() / "published").glob("*.yaml"))}
CT = "ct_hyperfed"
PRESETS = {name: path for name, path in EVERY.items() if name != CT}  # of pictures
RUNS = ["fedkd", "fedkd-none", "fedkd-rdsvd-ef", "local", "fml", "lgfedavg", "fedproto", "feddistill"]
WHOLE = {"cifar10_pathological_htfe8", "cifar100_dirichlet_htm10"}  # all of whose runs are played here
WRITERS: dict[str, Callable[[Path], None]] = {
    "cifar10": lambda root: official_layouts.write_cifar(root, "cifar10"),
    "cifar100": lambda root: official_layouts.write_cifar(root, "cifar100"),
    "fashion_mnist": official_layouts.write_fashion_mnist,
    "flowers102": official_layouts.write_flowers102,
    "tiny_imagenet": official_layouts.write_tiny_imagenet,
}
NETWORK = {"name": "cnn", "kernel_size": 5, "hidden": [8], "learning_rate": 0.05}
MINIATURE = {
    "rounds": 2,
    "num_clients": 5,
    "device": "cpu",
    "threads_per_rank": 1,
    "partition.min_samples": 4,
    "checkpoint.every": None,
    "checkpoint.last": False,
    "teachers": [{**NETWORK, "channels": [2]}, {**NETWORK, "channels": [3]}],
    "student": {**NETWORK, "channels": [2]},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All data sets of pictures, in one folder."""
    pytest.importorskip("PIL", reason="Pillow is not installed (extra images)")
    root = tmp_path_factory.mktemp("data")
    for write in WRITERS.values():
        write(root)
    return root


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch, in_process: Command) -> Iterator[Command]:
    """The command sweep, whose runs are in this process: takes arguments, returns (exit code, stdout, stderr)."""

    def start(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, *in_process(run, *command[3:]))

    monkeypatch.setattr(subprocess, "run", start)
    monkeypatch.setattr(sweep, "ThreadPoolExecutor", lambda jobs: contextlib.nullcontext(SimpleNamespace(map=map)))
    return lambda *arguments: in_process(sweep.main, *arguments)


def miniature(folder: Path, name: str, **keys: Any) -> Path:
    """Write a preset with small networks, few clients and two rounds; return the path."""
    tree = yaml.safe_load(EVERY[name].read_text(encoding="utf-8"))
    tree |= {"config": str(EVERY[name].parent / tree["config"]), "output": str(folder / "logs"), "seeds": [0]}
    tree["set"] = tree.get("set", {}) | (MINIATURE if name != CT else {}) | keys
    tree["runs"] = {run: keys for run, keys in tree["runs"].items() if name in WHOLE or run in ("fedkd", "local")}
    tree["published"]["rows"] = [row for row in tree["published"]["rows"] if row.get("run") in (None, *tree["runs"])]
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_literal_and_divides_data_of_the_official_size(name: str):
    tree = yaml.safe_load(PRESETS[name].read_text(encoding="utf-8"))
    assert (list(tree["runs"]), tree["runs"]["fedkd"], tree["seeds"]) == (RUNS, {}, [0, 1, 2])
    overrides = [f"{key}={json.dumps(value)}" for key, value in tree["set"].items()]
    config = load(PRESETS[name].parent / tree["config"], overrides)
    data, partition, kind, family = config.data.name, config.partition, *name.rsplit("_", 2)[1:]
    assert (name.startswith(data), partition.kind, config.data.pooled) == (True, kind, 0)
    assert (config.data.model_dump()["pixels"], partition.test_fraction) == ("half", 0.25)
    assert (config.local.epochs, config.local.shuffle, config.local.drop_last) == (1, False, True)
    assert (config.optimizer.name, config.optimizer.renew, config.optimizer.clip_norm) == ("sgd", True, 10)
    assert config.optimizer.momentum == config.optimizer.weight_decay == 0
    rates = {network.learning_rate for network in (*config.architectures, config.network("student"))}
    tiny = data == "tiny_imagenet"
    expected = (1000, 20, 10, {0.01}) if family != "htm10" else (100, 10, 64 if tiny else 32, {0.06})
    assert (config.rounds, config.num_clients, config.local.batch_size, rates) == expected
    assert len(config.architectures) == int(family.removeprefix("htfe").removeprefix("htm"))
    stand_in = datasets.load_or_stand_in(data, None, 0, config.data.options())
    labels = np.concatenate([stand_in.train["y"], stand_in.test["y"]])
    clients = divide(config, labels, None)
    assert sum(len(train) + len(test) for train, test in clients) == len(labels)
    sizes = [len(train) + len(test) for train, test in clients]
    if kind == "dirichlet":
        assert (partition.alpha, partition.balanced, min(sizes) >= 40) == (0.1, True, True)
    else:
        held = {len(np.unique(labels[np.r_[train, test]])) for train, test in clients}
        assert held == {{"cifar10": 2, "cifar100": 10, "flowers102": 10, "tiny_imagenet": 20, "fashion_mnist": 2}[data]}
        assert max(sizes) > min(sizes) or family == "htm10"  # whose classes have one holder each


def test_all_runs_of_a_preset_are_configurations():
    assert [item.run for item in sweep.read(PRESETS["cifar10_pathological_htfe8"])] == 3 * RUNS


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_in_miniature_ends_with_the_published_figures_beside_ours(
    name: str, data: Path, tmp_path: Path, play: Command
):
    path = miniature(tmp_path, name, **{"data.root": str(data)})
    code, out, err = play(path, "--dry-run", "--index", "0")
    assert (code, err) == (0, "")
    assert "fedkd: " in out
    assert " per round, 2 rounds: about " in out
    code, out, err = play(path)
    assert (code, "exit code" in err) == (0, False), err
    assert "Published beside here" in out
    logs = sorted((tmp_path / "logs").glob("*.h5"))
    assert len(logs) == (len(RUNS) if name in WHOLE else 2)
    rows = {(row["run"], row["published"]): row for row in shown(logs, path)}
    told = yaml.safe_load(path.read_text())["published"]["rows"]
    fedkd = next(row["value"] for row in told if row["method"] == "FedKD")
    log = costlog.read(tmp_path / "logs" / "fedkd-s0.h5")
    best = 100 * log["rounds"]["teacher_accuracy_weighted"].max()
    assert rows["fedkd", fedkd]["here"] == [pytest.approx(best)]
    assert rows["fedkd", fedkd]["difference"] == pytest.approx(best - fedkd)
    assert {run for run, _ in rows} >= {path.stem.removesuffix("-s0") for path in logs}


def test_scanners_in_miniature(tmp_path: Path, play: Command):
    for library in ("pydicom", "skimage"):
        pytest.importorskip(library, reason=f"{library} is not installed (extra ct)")
    write_patients(tmp_path, dict.fromkeys(["L001", "L002", "L003", "L004", "L005"], 3) | {"L506": 2})
    tree = yaml.safe_load((EVERY[CT].parent / "base" / "ct.yaml").read_text(encoding="utf-8"))
    scanners = [scanner | {"pixel": 5.3, "views": 32} for scanner in tree["data"]["scanners"]]
    network = {"name": "redcnn", "depth": 2, "kernel_size": 3, "learning_rate": 0.001}
    keys = {"data.root": str(tmp_path), "data.size": 32, "data.patch": 32, "data.scanners": scanners, "rounds": 2}
    keys |= {"teacher": {**network, "width": 4}, "student": {**network, "width": 2}, "device": "cpu"}
    keys |= {"checkpoint.every": None, "checkpoint.last": False, "partition.test_fraction": 0.4}
    path = miniature(tmp_path, CT, **keys)
    code, _, err = play(path)
    assert (code, "exit code" in err) == (0, False), err
    log = costlog.read(tmp_path / "logs" / "fedkd-s0.h5")
    of_first = log["training"]["teacher_psnr_full"][log["training"]["client"] == 0]
    row = shown([tmp_path / "logs" / "fedkd-s0.h5"], path)[0]
    assert row["here"] == [pytest.approx(of_first.max())]
    assert row["difference"] == pytest.approx(of_first.max() - 35.92)
    full, window = (log["rounds"][f"teacher_psnr{suffix}"][-1] for suffix in ("_full", ""))
    assert full > window
    told = [text for text in log["events"]["message"] if "rays are parallel" in str(text)]
    assert len(told) == (find_spec("astra") is None)


def shown(logs: list[Path], path: Path) -> list[dict[str, Any]]:
    """Return the rows of report --published."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert report([*map(str, logs), "--published", str(path), "--json"]) == 0
    return json.loads(out.getvalue())["published"]


@pytest.mark.skipif(not torchvision_stand_in.available, reason=torchvision_stand_in.HOW)
@pytest.mark.parametrize("shape", [(3, 32, 32), (3, 64, 64), (1, 28, 28)])
def test_the_networks_are_torchvision_s_with_a_head_behind_512_pooled_numbers(shape: tuple[int, ...]):
    from torchvision import models as originals

    base = "htm10" if shape == (3, 32, 32) else "htfe8"
    config = load(Path(f"published/base/{base}"))
    for network in config.architectures:
        options = network.options()
        if network.name == "torchvision" and (shape[1] == 32 or options["model"] in ("googlenet", "mobilenet_v2")):
            with torch.device("meta"):
                extra = {"aux_logits": False, "init_weights": False} if options["model"] == "googlenet" else {}
                extra |= {"image_size": shape[1]} if options["model"].startswith("vit") else {}
                original = originals.get_model(options["model"], weights=None, num_classes=100, **extra)
                model = models.build(network.name, shape, 100, options)
            last = [layer for layer in original.modules() if isinstance(layer, torch.nn.Linear)][-1]
            first = next(layer for layer in original.modules() if isinstance(layer, torch.nn.Conv2d))
            expected = sum(p.numel() for p in original.parameters()) - 100 * (last.in_features + 1) + 100 * 513
            expected -= first.weight.numel() * (3 - shape[0]) // 3
            assert sum(p.numel() for p in model.parameters()) == expected, options["model"]
    student = config.network("student")
    if shape == (3, 32, 32):
        student_model = models.build(student.name, shape, 100, student.options())
        assert sum(p.numel() for p in student_model.parameters()) == 924_708


def test_the_page_of_results_has_a_line_for_every_preset():
    page = (Path(__file__).parents[2] / "docs" / "results.md").read_text(encoding="utf-8")
    for name, path in EVERY.items():
        (line,) = (line for line in page.splitlines() if line.startswith(f"| `{name}`"))
        rows = yaml.safe_load(path.read_text(encoding="utf-8"))["published"]["rows"]
        printed = re.findall(r"\d+\.?\d*", line.partition("|")[2].partition("|")[2])
        for row in rows[:2]:
            assert row["value"] is None or row["value"] in map(float, printed) or row["method"] != "FedKD", name
