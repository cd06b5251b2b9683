"""Optimisers, schedules over rounds and label smoothing against a plain torch loop, and over processes and resumes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mpirun import find, how_to_install, mpirun
from sessions import SMALL as SESSION
from sessions import assert_same_run
from torch import nn
from torch.nn import functional
from torch.optim import SGD, Adam, AdamW, Optimizer, lr_scheduler
from trainer import LocalSetup, make, named

from fedkd_mpi import methods
from fedkd_mpi.client.batches import batches
from fedkd_mpi.common.random_streams import generator
from fedkd_mpi.common.torch_streams import torch_scope
from fedkd_mpi.config.load import load
from fedkd_mpi.models.flat import FlatModel
from fedkd_mpi.run import main

ROUNDS = 6
Scheduler = Callable[[Optimizer], lr_scheduler.LRScheduler]


def warm(rounds: int, then: Scheduler) -> Scheduler:
    """Return torch's own linear warm-up followed by another schedule."""

    def both(optimizer: Optimizer) -> lr_scheduler.LRScheduler:
        rise = lr_scheduler.LinearLR(optimizer, 1 / (rounds + 1), total_iters=rounds)
        return lr_scheduler.SequentialLR(optimizer, [rise, then(optimizer)], milestones=[rounds])

    return both


def constant(optimizer: Optimizer) -> lr_scheduler.LRScheduler:
    return lr_scheduler.ConstantLR(optimizer, 1.0)


OPTIMIZERS = {
    "name=sgd momentum=0.9 nesterov=true weight_decay=0.01": lambda p: SGD(p, 0.01, 0.9, 0, 0.01, nesterov=True),
    "name=adam momentum=0 betas=[0.5,0.75] eps=0.001": lambda p: Adam(p, 0.01, (0.5, 0.75), 0.001),
    "name=adamw momentum=0 weight_decay=0.1": lambda p: AdamW(p, 0.01, weight_decay=0.1),
}
SCHEDULES: dict[str, Scheduler] = {
    "": constant,
    "warmup_rounds=3": warm(3, constant),
    "name=step step_rounds=2": lambda o: lr_scheduler.StepLR(o, 2, 0.1),
    "name=step step_rounds=1 gamma=0.5 warmup_rounds=2": warm(2, lambda o: lr_scheduler.StepLR(o, 1, 0.5)),
    "name=cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, ROUNDS),
    "name=cosine minimum=0.25 warmup_rounds=1": warm(
        1, lambda o: lr_scheduler.CosineAnnealingLR(o, ROUNDS - 1, 0.0025)
    ),
}
CASES = [
    *((optimizer, "", 0.0) for optimizer in OPTIMIZERS),
    *((next(iter(OPTIMIZERS)), schedule, 0.0) for schedule in SCHEDULES if schedule),
    ("name=adamw momentum=0 weight_decay=0.1", "name=cosine minimum=0.25 warmup_rounds=1", 0.1),
]


def keys(section: str, text: str) -> list[str]:
    return [f"{section}.{setting}" for setting in text.split()]


def plain_loop(local: LocalSetup, client: int, case: tuple[str, str, float]) -> dict[str, torch.Tensor]:
    """Train a client's teacher by torch's classes alone, and return its tensors by name."""
    with torch_scope(local.config.seed, "teacher", client):
        start = FlatModel(methods.build(local.config, local.task).private(), "cpu")
    truth = {name: tensor.clone().requires_grad_() for name, tensor in named(start, start.state).items()}
    optimizer = OPTIMIZERS[case[0]](list(truth.values()))
    scheduler = SCHEDULES[case[1]](optimizer)
    arrays, indices = local.trainer.arrays, local.clients[client].train_indices
    x = (torch.from_numpy(arrays["x"][indices]).float() / 16 - 0.3) / 0.4
    y = torch.from_numpy(arrays["y"][indices])
    for round_index in range(ROUNDS):
        for index in batches(len(y), local.config.local, generator(local.config.seed, "batches", round_index, client)):
            optimizer.zero_grad()
            values = x[index].flatten(1)
            for layer in ("layers.0", "layers.1", "layers.2"):
                values = functional.linear(values, *(truth[f"teacher.{layer}.{part}"] for part in ("weight", "bias")))
                values = values.relu()
            logits = functional.linear(values, truth["teacher.head.weight"], truth["teacher.head.bias"])
            nn.CrossEntropyLoss(label_smoothing=case[2])(logits, y[index]).backward()
            optimizer.step()
        scheduler.step()
    return truth


@pytest.mark.parametrize("stacked", [False, True], ids=["alone", "stacked"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_local_training_is_the_plain_loop_of_torch(case: tuple[str, str, float], stacked: bool):
    choices = [*keys("optimizer", case[0]), *keys("schedule", case[1]), f"local.label_smoothing={case[2]}"]
    choices += ["teacher.learning_rate=0.01", "optimizer.clip_norm=null", f"stack={1 + 2 * stacked}"]
    local = make("method=local", f"rounds={ROUNDS}", *choices)
    for round_index in range(ROUNDS):
        if stacked:
            local.trainer.train_stack(local.clients, round_index, None, evaluate=False)
        else:
            local.train(1, round_index)
    truth = plain_loop(local, 1, case)
    found = local.private(1)
    assert found.keys() == truth.keys()
    for name, tensor in truth.items():
        torch.testing.assert_close(found[name], tensor.detach(), rtol=0, atol=3e-6, msg=name)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_factor_of_a_round_is_that_of_torchs_schedulers(schedule: str):
    config = load(overrides=[f"rounds={ROUNDS}", *keys("schedule", schedule)])
    optimizer = SGD([torch.zeros(1, requires_grad=True)], 0.01)
    scheduler, expected = SCHEDULES[schedule](optimizer), []
    for _ in range(ROUNDS):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert [0.01 * config.rate_factor(r) for r in range(ROUNDS)] == pytest.approx(expected, rel=1e-12)


TOGETHER = {
    "adamw, cosine, yogi": [
        *["optimizer={name: adamw, betas: [0.8, 0.9], eps: 1.0e-6, weight_decay: 0.1}", "local.label_smoothing=0.1"],
        *["schedule={name: cosine, warmup_rounds: 1, minimum: 0.1}", "stack=2"],
        *["server.optimizer=fedyogi", "server.learning_rate=0.01"],
    ],
    "nesterov, step, momentum": [
        *["optimizer={momentum: 0.9, nesterov: true}", "schedule={name: step, step_rounds: 1, gamma: 0.5}"],
        *["server.momentum=0.5"],
    ],
    "adam, warm-up, adagrad": [
        *["optimizer={name: adam}", "schedule.warmup_rounds=2"],
        *["server.optimizer=fedadagrad", "server.learning_rate=0.01"],
    ],
}


@pytest.mark.parametrize("name", TOGETHER)
def test_begun_on_three_processes_and_continued_on_one_a_run_is_the_same(name: str, tmp_path: Path):
    if not find("openmpi"):
        pytest.skip(how_to_install("openmpi"))
    how = [*SESSION, *TOGETHER[name], "rounds=3", "teacher.learning_rate=0.01", "student.learning_rate=0.01"]
    once, stopped = tmp_path / "once.h5", tmp_path / "stopped.h5"
    assert main([*how, "--output", str(once)]) == 0
    result = mpirun(3, "-m", "fedkd_mpi.run", *how, "time_limit=0.001", "--output", stopped)
    assert result.returncode == 75, result.stderr
    assert main(["--resume", str(stopped), "--trust-log", "time_limit=null"]) == 0
    assert_same_run(once, stopped)


def test_a_task_without_labels_and_a_longer_cosine_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture):
    log = tmp_path / "log.h5"
    task = ["task=worker_parts:Unsmoothed", "local.label_smoothing=0.1"]
    assert main([*SESSION, *task, "rounds=1", "--output", str(log)]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "local.label_smoothing: task=worker_parts:Unsmoothed has no label smoothing" in line
    still = ["compression.codec=none", "schedule.name=cosine", "rounds=1"]
    assert main([*SESSION, *still, "--output", str(log)]) == 0
    with pytest.raises(SystemExit, match="2"):
        main(["--resume", str(log), "--trust-log", "rounds=2"])
    assert "schedule.name=cosine spreads the fall of the learning rates over all rounds" in capfd.readouterr().err
