"""The benchmarks run, and print their figures: on small made-up recordings, whose numbers mean nothing."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from matrices import with_spectrum
from mpirun import REPOSITORY, find, how_to_install, run

pytestmark = pytest.mark.slow
LAYERS = {
    "fashion_cnn": {"layers.0.weight": (64, 80)},
    "cifar_resnet": {"conv1.weight": (64, 8, 3, 3), "conv2.weight": (64, 8, 3, 3)},
    "text_bert": {"blocks.0.weight": (72, 64), "words.weight": (300, 64)},
}
SMALL_ROUND = ["--config", "digits.yaml", "--ranks", "2", "--rounds", "2", "num_clients=2", "local.epochs=1"]
PROGRAMS = {
    "factorization": [],
    "codecs": [],
    "server": [],
    "round": [*SMALL_ROUND, "--naive", "--apart"],
    "local_training": ["--setting", "stack=2", "--repetitions", "1", "num_clients=2", "local.epochs=1"],
    "portable_bits": ["--repetitions", "1", "num_clients=2", "local.epochs=1"],
    "shared_basis": ["--rounds", "2", "num_clients=2", "local.epochs=1"],
    "checkpoint": ["--ranks", "2", "--rounds", "2", "--repeats", "1", "num_clients=2", "local.epochs=1"],
    "startup": ["--ranks", "2", "--seconds", "1", "--repetitions", "1"],
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of worker_benchmarks.py after all of them."""
    installation = find("openmpi")
    if installation is None:
        pytest.skip(f"Open MPI is not installed: {how_to_install('openmpi')}")
    folder = tmp_path_factory.mktemp("benchmarks")
    for student, layers in LAYERS.items():
        arrays = {}
        for seed, (client, index) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
            for layer, shape in layers.items():
                matrix = with_spectrum(0.9 ** np.arange(60), shape[0], int(np.prod(shape[1:])), seed)
                arrays[f"{client}/{index}/{layer}"] = matrix.numpy().reshape(shape)
        np.savez(folder / f"{student}.npz", **arrays)
    environment = {
        "FEDKD_UPDATES": str(folder),
        "MPI4PY_LIBMPI": str(installation.library),
        "PATH": os.pathsep.join([str(installation.launcher.parent), os.environ["PATH"]]),
    }
    worker = Path(__file__).parents[1] / "helpers" / "worker_benchmarks.py"
    command = [sys.executable, worker, folder, json.dumps(PROGRAMS)]
    done = run(command, timeout=600, env=environment, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_benchmark_prints_its_claims(name: str, results: Path):
    printed, found = (results / f"{name}.txt").read_text(encoding="utf-8"), results / f"{name}.json"
    assert found.exists(), printed
    claims = json.loads(found.read_text())["claims"]
    assert claims
    for claim, value in claims.items():
        assert value == value, claim  # not NaN
        assert f"{claim} = " in printed
