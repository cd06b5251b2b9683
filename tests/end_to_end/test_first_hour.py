"""A new user's first hour: pictures, network and partition of one's own, a sweep, its figures, and a student to use.

The network and the partition know nothing of this package, and the program that uses the student does not import it.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from mpirun import run
from PIL import Image

from fedkd_mpi import costlog

NETS = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, channels_in, channels_out):
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 3, 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(channels_out)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(self.bn(self.conv(x)))


class SmallNet(nn.Module):
    def __init__(self, width=16, num_classes=1000, drop_path=0.1):
        super().__init__()
        self.drop_path = [rate.item() for rate in torch.linspace(0, drop_path, 2)]
        self.layer1, self.layer2 = Block(3, width), Block(width, 2 * width)
        self.fc = nn.Linear(2 * width, num_classes)

    def forward(self, x):
        return self.fc(self.layer2(self.layer1(x)).mean((2, 3)))


def small_net(num_classes, width=8):
    return SmallNet(width, num_classes)
"""
PARTITION = """
import numpy as np


def by_rank(labels, num_clients, rng, *, groups, min_samples, options):
    shares = np.arange(1, num_clients + 1) ** options["power"]
    owner = np.searchsorted(np.cumsum(shares) / shares.sum(), (np.arange(len(labels)) + 0.5) / len(labels))
    return rng.permutation(owner)
"""
CONFIG = """
name: photos
rounds: 2
num_clients: 3
task: image_classification
data: {name: folder, path: photos, size: 16}
partition: {kind: "my_parts.partition:by_rank", options: {power: 0.5}}
teacher: {name: "my_parts.nets:SmallNet", width: 12, features: [layer1, layer2], learning_rate: 0.01}
student: {name: "my_parts.nets:small_net", features: [layer1, layer2], learning_rate: 0.01}
optimizer: {name: adamw, weight_decay: 0.01}
schedule: {name: cosine, warmup_rounds: 1}
local: {epochs: 4, batch_size: 8}
"""
SWEEP = """
config: mine.yaml
output: runs/mine
seeds: [0, 1]
set: {partition: {kind: file, path: parts.json}}
runs: {photos: {}}
grid: {compression.codec: [none, svd, rdsvd]}
"""
CLASSES = ("cherry", "grass", "lemon", "night", "sky")
COLOURS = ((190, 30, 60), (40, 160, 40), (220, 210, 40), (20, 20, 60), (90, 160, 230))


def pictures(folder: Path) -> None:
    """Write photos/train/CLASS and photos/test/CLASS, PNG and JPG of several sizes."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 5)):
        for name, colour in zip(CLASSES, COLOURS, strict=True):
            where = folder / "photos" / part / name
            where.mkdir(parents=True)
            for number in range(count):
                noise = rng.normal(0, 60, (*rng.integers(18, 30, 2), 3)) + colour
                picture = Image.fromarray(noise.clip(0, 255).astype(np.uint8))
                picture.save(where / f"{number}.{'jpg' if number % 2 else 'png'}")


def test_from_own_pictures_to_a_student_in_plain_pytorch(tmp_path: Path) -> None:
    pictures(tmp_path)
    (tmp_path / "my_parts").mkdir()
    for name, text in (("nets", NETS), ("partition", PARTITION)):
        (tmp_path / "my_parts" / f"{name}.py").write_text(text)
    (tmp_path / "mine.yaml").write_text(CONFIG)
    (tmp_path / "sweep.yaml").write_text(SWEEP)

    def fedkd(*words: str) -> str:
        done = run([sys.executable, "-m", "fedkd_mpi", *words], cwd=tmp_path, env=path, timeout=400)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    path = {"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}"}
    assert "my_parts.nets:small_net" in fedkd(
        "run", "--config", "mine.yaml", "--dry-run", "--save-partition", "parts.json"
    )
    told = fedkd("sweep", "sweep.yaml", "--jobs", "2")
    assert "6 of 6 runs" in told
    logs = sorted((tmp_path / "runs" / "mine").glob("*.h5"))
    assert len(logs) == 6
    spent = {log.stem: int(costlog.read(log)["rounds"]["uplink_bytes"].sum()) for log in logs}
    assert spent["photos-codecrdsvd-s1"] < spent["photos-codecnone-s1"]

    one = "runs/mine/photos-codecsvd-s0.h5"
    fedkd("report", one, "--plot", "figures")
    figures = {file.name for file in (tmp_path / "figures").iterdir()}
    assert {"scores.png", "scores.svg", "scores.pdf", "photos-codecsvd-layers.png"} <= figures

    fedkd("export", one, "--round", "best", "--to", "student.safetensors", "--trust-log")
    card = (tmp_path / "student.safetensors.md").read_text()
    scored = float(re.search(r"accuracy, global test set \| (\S+) \|", card)[1])
    assert in_plain_pytorch(tmp_path, card) == pytest.approx(scored, abs=1e-6)
    assert scored > 0.3


def in_plain_pytorch(folder: Path, card: str) -> float:
    """Return the accuracy of the program in a model card on the pictures of the test part."""
    program = f"""
import sys
from pathlib import Path
import numpy as np
from PIL import Image
sys.modules["fedkd_mpi"] = None  # an import fails
import torch
classes = {sorted(CLASSES)}
files = sorted(Path("photos/test").glob("*/*"))
def square(file):
    picture = Image.open(file).convert("RGB")
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    box = (left, top, left + side, top + side)
    return np.asarray(picture.resize((16, 16), Image.Resampling.BILINEAR, box)).transpose(2, 0, 1)
pixels = torch.tensor(np.stack([square(file) for file in files])).float()
{re.search("```python(.*)```", card, re.DOTALL)[1]}
labels = torch.tensor([classes.index(file.parent.name) for file in files])
print(float((logits.argmax(1) == labels).float().mean()))
"""
    done = run([sys.executable, "-c", program], cwd=folder, env={"PYTHONPATH": str(folder)})
    assert done.returncode == 0, done.stderr
    return float(done.stdout)
