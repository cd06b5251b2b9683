"""Choices of the local training against a plain torch loop, and over processes and resumes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import own_optimizers
import pytest
import torch
from sessions import SMALL as SESSION
from sessions import assert_same_begun_elsewhere
from torch import nn
from torch.nn import functional
from torch.optim import SGD, Adam, AdamW, Optimizer, lr_scheduler
from trainer import LocalSetup, make, named

from fedkd_mpi import methods
from fedkd_mpi.client.batches import batches
from fedkd_mpi.client.rates import Rates
from fedkd_mpi.common.random_streams import generator
from fedkd_mpi.common.torch_streams import torch_scope
from fedkd_mpi.config.load import load
from fedkd_mpi.errors import UserError
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


BUILT_IN = {
    "name=sgd momentum=0.9 nesterov=true weight_decay=0.01": lambda p: SGD(p, 0.01, 0.9, 0, 0.01, nesterov=True),
    "name=adam momentum=0 betas=[0.5,0.75] eps=0.001": lambda p: Adam(p, 0.01, (0.5, 0.75), 0.001),
    "name=adamw momentum=0 weight_decay=0.1": lambda p: AdamW(p, 0.01, weight_decay=0.1),
}
BY_PATH = {
    'name=torch.optim.RAdam options={"weight_decay":0.01}': lambda p: torch.optim.RAdam(p, 0.01, weight_decay=0.01),
    "name=torch.optim.NAdam": lambda p: torch.optim.NAdam(p, 0.01),
    "name=torch.optim.Adagrad": lambda p: torch.optim.Adagrad(p, 0.01),
    "name=torch.optim.Adafactor": lambda p: torch.optim.Adafactor(p, 0.01),
    "name=own_optimizers:Base": lambda p: own_optimizers.Base(p, 0.01),
    "name=own_optimizers:Returning": lambda p: own_optimizers.Returning(p, 0.01),
    'name=own_optimizers:Base options={"decay":0.5}': lambda p: own_optimizers.Base(p, 0.01, 0.5),
}
OPTIMIZERS = BUILT_IN | BY_PATH
SCHEDULES: dict[str, Scheduler] = {
    "": constant,
    "warmup_rounds=3": warm(3, constant),
    "name=step step_rounds=2": lambda o: lr_scheduler.StepLR(o, 2, 0.1),
    "name=step step_rounds=1 gamma=0.5 warmup_rounds=2": warm(2, lambda o: lr_scheduler.StepLR(o, 1, 0.5)),
    "name=cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, ROUNDS),
    "name=cosine minimum=0.25 warmup_rounds=1": warm(
        1, lambda o: lr_scheduler.CosineAnnealingLR(o, ROUNDS - 1, 0.0025)
    ),
    "name=own_optimizers:triangle": lambda o: lr_scheduler.LambdaLR(o, lambda r: 1 - abs(2 * r / ROUNDS - 1)),
}
STEPS = 6  # of a client in a round: two epochs of batches of 8, 8 and 5 samples
ALL = ROUNDS * STEPS
OVER_STEPS: dict[str, Scheduler] = {
    "warmup_steps=10": warm(10, constant),
    "warmup_rounds=2 name=step step_steps=4 gamma=0.5": warm(12, lambda o: lr_scheduler.StepLR(o, 4, 0.5)),
    "name=step step_rounds=2": lambda o: lr_scheduler.StepLR(o, 2 * STEPS, 0.1),
    "name=cosine minimum=0.25 warmup_steps=7": warm(7, lambda o: lr_scheduler.CosineAnnealingLR(o, ALL - 7, 0.0025)),
    "name=own_optimizers:triangle": lambda o: lr_scheduler.LambdaLR(o, lambda s: 1 - abs(2 * s / ALL - 1)),
}


class Case(NamedTuple):
    """Choices of a local training; `times` is a factor on the loss."""

    optimizer: str = next(iter(BUILT_IN))
    schedule: str = ""
    smoothing: float = 0.0
    over_steps: bool = False
    accumulate: int = 1
    half: bool = False
    renew: bool = False
    times: float = 1.0

    @property
    def keys(self) -> list[str]:
        every = f"every={'step' if self.over_steps else 'round'} {self.schedule}"
        return [
            *("teacher.learning_rate=0.01", "optimizer.clip_norm=null", "optimizer.momentum=0"),
            *[*keys("optimizer", self.optimizer), *keys("schedule", every)],
            *(f"local.label_smoothing={self.smoothing}", f"local.accumulate={self.accumulate}"),
            f"precision={'float16' if self.half else 'float32'}",
            f"optimizer.renew={str(self.renew).lower()}",
        ]

    def scheduler(self, optimizer: Optimizer) -> lr_scheduler.LRScheduler:
        return (OVER_STEPS if self.over_steps else SCHEDULES)[self.schedule](optimizer)


STACKED = [
    *(Case(optimizer) for optimizer in BUILT_IN),
    *(Case(schedule=schedule) for schedule in SCHEDULES if schedule),
    *(Case(schedule=schedule, over_steps=True) for schedule in OVER_STEPS),
    *(Case(optimizer, renew=True) for optimizer in BUILT_IN),
    Case("name=adamw momentum=0 weight_decay=0.1", "name=cosine minimum=0.25 warmup_rounds=1", 0.1),
]
ALONE = [
    *(Case(optimizer) for optimizer in BY_PATH),
    Case("name=torch.optim.NAdam", "name=cosine minimum=0.25 warmup_steps=7", over_steps=True),
    Case("name=torch.optim.NAdam", renew=True),
    *(Case(accumulate=count) for count in (2, 4, 100)),
    *(Case(half=True), Case(half=True, times=1e4), Case("name=torch.optim.NAdam", half=True, accumulate=4)),
]


def keys(section: str, text: str) -> list[str]:
    return [f"{section}.{setting}" for setting in text.split()]


def plain_loop(local: LocalSetup, client: int, case: Case) -> dict[str, torch.Tensor]:
    """Train a client's teacher by torch's classes alone, and return its tensors by name."""
    with torch_scope(local.config.seed, "teacher", client):
        start = FlatModel(methods.build(local.config, local.task).private(), "cpu")
    truth = {name: tensor.clone().requires_grad_() for name, tensor in named(start, start.state).items()}
    optimizer = OPTIMIZERS[case.optimizer](list(truth.values()))
    scheduler, scaler = case.scheduler(optimizer), torch.amp.GradScaler("cpu", enabled=case.half)
    arrays, indices = local.trainer.arrays, local.clients[client].train_indices
    x = (torch.from_numpy(arrays["x"][indices]).float() / 16 - 0.3) / 0.4
    y = torch.from_numpy(arrays["y"][indices])
    for round_index in range(ROUNDS):
        if case.renew:
            optimizer = OPTIMIZERS[case.optimizer](list(truth.values()))
            scheduler = case.scheduler(optimizer)
        order = generator(local.config.seed, "batches", round_index, client)
        plan = list(batches(len(y), local.config.local, order))
        for at in range(0, len(plan), case.accumulate):
            optimizer.zero_grad()
            part = plan[at : at + case.accumulate]
            for index in part:
                with torch.autocast("cpu", torch.float16, enabled=case.half):
                    values = x[index].flatten(1)
                    for layer in ("layers.0", "layers.1", "layers.2"):
                        weight, bias = (truth[f"teacher.{layer}.{name}"] for name in ("weight", "bias"))
                        values = functional.linear(values, weight, bias).relu()
                    logits = functional.linear(values, truth["teacher.head.weight"], truth["teacher.head.bias"])
                    loss = nn.CrossEntropyLoss(label_smoothing=case.smoothing)(logits, y[index]) * case.times
                scaler.scale(loss / len(part)).backward()
            scaler.step(optimizer)
            scaler.update()
            if case.over_steps:
                scheduler.step()
        if not case.over_steps:
            scheduler.step()
    if case.times > 1:
        assert scaler.get_scale() < 2**16, "no step was left out"
    return truth


# A step that the loss scaling leaves out is none to torch's scheduler.
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step:UserWarning")
@pytest.mark.parametrize(
    ("case", "stacked"),
    [*((case, False) for case in STACKED + ALONE), *((case, True) for case in STACKED)],
    ids=str,
)
def test_a_local_training_is_the_plain_loop_of_torch(case: Case, stacked: bool, monkeypatch: pytest.MonkeyPatch):
    local = make("method=local", f"rounds={ROUNDS}", *case.keys, f"stack={1 + 2 * stacked}")
    loss = local.task.loss
    monkeypatch.setattr(local.task, "loss", lambda *of: loss(*of) * case.times)
    for round_index in range(ROUNDS):
        if stacked:
            local.trainer.train_stack(local.clients, round_index, None, evaluate=False)
        else:
            local.train(0, round_index)  # whose networks and optimiser are the same
            local.train(1, round_index)
    truth = plain_loop(local, 1, case)
    found = local.private(1)
    assert found.keys() == truth.keys()
    for name, tensor in truth.items():
        torch.testing.assert_close(found[name], tensor.detach(), rtol=0, atol=3e-6, msg=name)


@pytest.mark.parametrize("case", [case for case in ALONE if not case.over_steps], ids=str)
def test_what_trains_clients_one_at_a_time_refuses_a_stack(case: Case):
    with pytest.raises(UserError, match="trains clients one at a time: set stack=1"):
        make("method=local", *case.keys, "stack=3")


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        ("optimizer.name=torch.optim.LBFGS", "its step\\(\\) needs closure"),
        ("optimizer.name=torch.optim.SparseAdam", "does not support dense gradients"),
        ("optimizer.name=torch.optim.Muon", "Muon only supports 2D parameters"),
        ("optimizer.name=torch.optim.RAdm", "cannot be loaded"),
        ("optimizer.name=torch.optim.lr_scheduler", "is not a torch optimiser"),
        ("optimizer={name: torch.optim.RAdam, options: {beta: 1}}", "unexpected keyword argument 'beta'"),
        ("optimizer={name: torch.optim.RAdam, options: {betas: [2, 0]}}", "Invalid beta parameter"),
        ("optimizer={name: torch.optim.RAdam, weight_decay: 1}", "weight_decay of .* belongs into optimizer.options"),
        ("optimizer={name: sgd, options: {a: 1}}", "optimizer.options belongs to torch.optim.NAME"),
        ("optimizer.name=own_optimizers:Listing", "keeps a list as .*/past"),
        ("optimizer.name=own_optimizers:Restless", "changes its attribute steps"),
        ("optimizer.name=own_optimizers:Replacing", "replaces the memory of .*: it must change its values in place"),
        ("optimizer.name=own_optimizers:Apart", "keeps all in its state, which is no parameter"),
        ("optimizer.name=own_optimizers:Broken", "a trial step: ZeroDivisionError: no such thing"),
        ("optimizer.name=rmsprop", "must be 'sgd', 'adam' or 'adamw', or package.module:Name"),
        ("schedule.name=linear", "must be 'constant', 'step' or 'cosine', or package.module:Name"),
        ("schedule.name=own_optimizers:backwards", "returned -1.0 for step 1 of round 1:"),
        ("schedule.name=own_optimizers:nothing", "returned None"),
        ("schedule.name=own_optimizers:Base", "function whose parameters begin round_index, rounds, step, steps"),
        ("schedule={name: step, every: step}", "needs one of schedule.step_rounds and schedule.step_steps"),
        ("schedule.warmup_steps=3", "schedule.warmup_steps needs schedule.every=step"),
        ("schedule={every: step, warmup_steps: 3, warmup_rounds: 1}", "give one of schedule.warmup_rounds"),
        ("schedule={name: own_optimizers:triangle, warmup_rounds: 1}", "a warm-up belongs into it"),
        ("precision=float16 exchange=gradient_sum", "leaves steps out whose gradients overflow"),
    ],
)
def test_what_cannot_work_is_refused_by_name(choice: str, says: str):
    with pytest.raises(UserError, match=says) as error:
        make("optimizer.momentum=0", *choice.split(" ", 1 if "float16" in choice else 0))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_factor_of_a_round_is_that_of_torchs_schedulers(schedule: str):
    config = load(overrides=[f"rounds={ROUNDS}", *keys("schedule", schedule)])
    optimizer = SGD([torch.zeros(1, requires_grad=True)], 0.01)
    scheduler, expected = SCHEDULES[schedule](optimizer), []
    for _ in range(ROUNDS):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    rates = Rates(config)
    assert [0.01 * rates.factor(r, 3, 7) for r in range(ROUNDS)] == pytest.approx(expected, rel=1e-12)


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
    "by path, over steps, accumulated": [
        *["optimizer={name: own_optimizers:Base, options: {decay: 0.5}}", "local.accumulate=2"],
        *["schedule={name: own_optimizers:triangle, every: step}"],
    ],
    "by path, state that goes": ["optimizer={name: own_optimizers:Returning}"],
    "by path, float16": ["optimizer.name=torch.optim.Adafactor", "optimizer.momentum=0", "precision=float16"],
}


@pytest.mark.parametrize("name", TOGETHER)
def test_begun_on_three_processes_and_continued_on_one_a_run_is_the_same(name: str, tmp_path: Path):
    rates = ["teacher.learning_rate=0.01", "student.learning_rate=0.01"]
    assert_same_begun_elsewhere(tmp_path, *SESSION, *TOGETHER[name], "rounds=3", *rates)


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
