"""Local training through torch.compile: the same within rounding, and bit for bit on any ranks."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from same_run import assert_same_run
from simulate import play
from worker_simulation import COMPILED

from fedkd_mpi.client.compiled import compiled
from fedkd_mpi.config.load import load
from fedkd_mpi.errors import UserError
from fedkd_mpi.models.output import Texts
from fedkd_mpi.run import main

# What the default run does not have: several batches per step, rates over steps, an optimiser by its path, float16.
CHOICES = ["local.accumulate=2", "schedule={name: cosine, every: step}", "precision=float16", "optimizer.momentum=0"]
CHOICES += ["optimizer.name=torch.optim.SGD"]
needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler: g++")
no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")


@needs_compiler
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda:0", marks=[pytest.mark.gpu, no_gpu])])
@pytest.mark.parametrize("choices", [[], CHOICES], ids=["default", "choices"])
def test_a_run_is_the_same_within_rounding(device: str, choices: list[str]):
    shared = [*COMPILED["compiled"], "compression.codec=none", *choices]
    (plain, _), (other, log) = play(*shared, "compile=false"), play(*shared, f"device={device}")
    assert log["training"]["student_loss"].min() > 0
    tolerance = {"rtol": 0.05, "atol": 5e-3} if choices else {"rtol": 1e-3, "atol": 1e-4}
    torch.testing.assert_close(other.exchange.replica.cpu(), plain.exchange.replica, **tolerance)
    for client, alone in zip(other.clients.values(), plain.clients.values(), strict=True):
        torch.testing.assert_close(client.tensors["private"].cpu(), alone.tensors["private"], **tolerance)


@needs_compiler
def test_the_bits_do_not_depend_on_the_processes(simulated: Callable[..., Path]):
    one = simulated("openmpi", 1, "compiled")  # first: what it compiles the others find in torch's cache
    assert_same_run(simulated("openmpi", 3, "compiled"), one, "compiled", 3)


def test_a_missing_compiler_is_said_at_the_start(
    tmp_path: Path, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("CXX", "no-such-compiler")
    output = tmp_path / "log.h5"
    assert main(["--output", str(output), "num_clients=4", "rounds=1", "device=cpu", "compile=true"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line == "fedkd_mpi: compile=true needs a C++ compiler on every node: install g++, or set compile=false"
    assert not output.exists()


def test_texts_are_refused():
    with pytest.raises(UserError, match="the lengths of texts vary; set compile=false"):
        compiled(lambda: None, "cpu", Texts(100, 20, 0, "text"))


def test_stacks_are_refused():
    with pytest.raises(UserError, match="set stack=1, or compile=false"):
        load(overrides=["compile=true", "stack=2"])
