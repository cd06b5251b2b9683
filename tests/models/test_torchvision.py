"""Unchanged networks of torchvision take part in equation 5 as teacher and as student, through whole runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision_stand_in
from mpirun import clean_environment, find, how_to_install, mpirun
from safetensors.torch import load_file
from sessions import assert_same_run

import fedkd_mpi
from fedkd_mpi import costlog, models
from fedkd_mpi.export import main as export
from fedkd_mpi.run import main

pytestmark = pytest.mark.skipif(not torchvision_stand_in.available, reason=torchvision_stand_in.HOW)

STAGES = ["layer1", "layer2", "layer3", "layer4"]
BLOCKS = ["encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_1"]
RESNET = {"name": "torchvision_stand_in:resnet18", "features": STAGES}
SMALL = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32}
SHUFFLENET = {"name": "torchvision_stand_in:shufflenet_v2_x0_5", "features": ["conv1", "stage2", "conv5"]}
VIT = {"name": "torchvision_stand_in:VisionTransformer", "features": BLOCKS, **SMALL}
HOW = [
    "num_clients=2",
    "rounds=1",
    "partition={kind: iid}",
    "local.steps=2",
    "local.epochs=null",
    "device=cpu",
    "threads_per_rank=1",
]


def pair(teacher: dict[str, object], student: dict[str, object]) -> list[str]:
    return [
        f"{role}={json.dumps({**network, 'learning_rate': 0.01})}"
        for role, network in (("teacher", teacher), ("student", student))
    ]


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Coloured pictures of 32 x 32 in an npz file."""
    rng, y = np.random.default_rng(0), np.arange(60) % 3
    x = (rng.integers(0, 120, (60, 3, 32, 32)) + 40 * y[:, None, None, None]).astype(np.uint8)
    path = tmp_path_factory.mktemp("pictures") / "scans.npz"
    np.savez(path, x=x, y=y)
    return path


def test_features_are_those_that_torchvision_extracts():
    from torchvision.models.feature_extraction import create_feature_extractor

    for network, shape in ((RESNET, (3, 32, 32)), (VIT, (3, 32, 32))):
        options = {key: value for key, value in network.items() if key not in ("name", "features")}
        model = models.build(network["name"], shape, 3, options, "student", network["features"]).eval()
        x = torch.randn(4, *shape)
        bare = getattr(torchvision_stand_in, network["name"].partition(":")[2])(num_classes=3, **options).eval()
        bare.load_state_dict(model.state_dict())
        expected = create_feature_extractor(bare, network["features"])(x)
        for name, found in zip(network["features"], model(x).hidden, strict=True):
            seen = expected[name]
            torch.testing.assert_close(found, seen.mean(1) if seen.dim() == 3 else seen.mean((2, 3)))


def test_teacher_and_transformer_give_the_same_bits_on_any_number_of_processes(scans: Path, tmp_path: Path):
    if not find("openmpi"):
        pytest.skip(how_to_install("openmpi"))
    how = [*HOW, *pair(SHUFFLENET, VIT), "data.name=npz", f"data.path={scans}"]
    assert main([*how, "--output", str(tmp_path / "1.h5")]) == 0
    done = mpirun(3, "-m", "fedkd_mpi.run", *how, "--output", tmp_path / "3.h5")
    assert done.returncode == 0, done.stderr
    assert "no hidden term" not in done.stdout
    assert_same_run(tmp_path / "1.h5", tmp_path / "3.h5")


def test_a_resnet_is_exchanged_and_exported_to_plain_torchvision(scans: Path, tmp_path: Path):
    log, file = tmp_path / "log.h5", tmp_path / "student.safetensors"
    how = [*HOW, *pair(VIT, RESNET), "compression.codec=quantize", "compression.bits=8"]
    assert main([*how, "data.name=npz", f"data.path={scans}", "--output", str(log)]) == 0
    assert np.isfinite(costlog.read(log)["rounds"]["student_loss"]).all()
    assert export([str(log), "--to", str(file), "--trust-log"]) == 0
    student = fedkd_mpi.load_student(log, trust_log=True)
    x = student.preprocess(np.load(scans)["x"][:8])
    torch.save(x, tmp_path / "x.pt")
    program = (
        "import sys, torch, torchvision_stand_in; from torchvision.models import resnet18\n"
        "from safetensors.torch import load_file\n"
        "model = resnet18(num_classes=3).eval(); model.load_state_dict(load_file(sys.argv[1]))\n"
        "torch.save(model(torch.load(sys.argv[2])).detach(), sys.argv[3]); assert 'fedkd_mpi' not in sys.modules"
    )
    arguments = [sys.executable, "-c", program, str(file), str(tmp_path / "x.pt"), str(tmp_path / "y.pt")]
    subprocess.run(arguments, check=True, env=clean_environment())
    assert torch.equal(torch.load(tmp_path / "y.pt"), student(x).logits)
    assert "layer4.1.bn2.running_var" in load_file(file)
