"""Clients trained at once learn what each learns alone; what cannot be stacked is refused before it starts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from simulate import play, start
from trainer import BATCH_NORM, make

from fedkd_mpi.errors import RunFault
from fedkd_mpi.run import main
from fedkd_mpi.simulation.rounds import stack_groups

ADAM = ["optimizer.name=adam", "optimizer.momentum=0", "teacher.learning_rate=0.01", "student.learning_rate=0.01"]
CNN = ["student={name: cnn, channels: [4], kernel_size: 3, hidden: [6], norm: group, learning_rate: 0.1}"]
TEACHERS = "teachers=[{name: mlp, hidden: [9, 8], learning_rate: 0.1}, {name: mlp, hidden: [5], learning_rate: 0.2}]"
CASES = {
    "fedkd": [],
    "no momentum, no clipping": ["optimizer.momentum=0", "optimizer.clip_norm=null"],
    "adam": ADAM,
    "convolutions": CNN,
    "two architectures": ["teacher=null", TEACHERS],
    "fedavg": ["method=fedavg"],
    "alone": ["method=local"],
    "gradient sums": ["exchange=gradient_sum"],
    "few of many": ["cohort_size=3", "rounds=3"],
    "steps": ["local.epochs=null", "local.steps=5", "data.augment=true"],
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_is_the_same_within_rounding(case: str):
    slow = ["teacher.learning_rate=0.01", "student.learning_rate=0.01"]  # fast ones make rounding errors grow
    if case in ("adam", "convolutions", "two architectures"):
        slow = []
    shared = ["num_clients=6", "partition.alpha=0.3", "local.batch_size=8", "compression.codec=none", *slow]
    shared += CASES[case]
    (one, log), (stacked, stacked_log) = play(*shared), play(*shared, "stack=4")
    if one.exchange:
        torch.testing.assert_close(stacked.exchange.replica, one.exchange.replica, rtol=1e-3, atol=1e-4)
    for client in one.clients.values():
        found = stacked.clients[client.id].tensors
        assert found.keys() == client.tensors.keys()
        for name, tensor in client.tensors.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4)
    for name in ("teacher_loss", "student_loss"):
        np.testing.assert_allclose(stacked_log["training"][name], log["training"][name], rtol=1e-3)
    assert stacked_log["training"]["client"].tolist() == log["training"]["client"].tolist()
    for name in ("bytes", "client"):
        assert stacked_log["uplink"][name].tolist() == log["uplink"][name].tolist()


def test_full_batches_are_taken_together(monkeypatch: pytest.MonkeyPatch):
    run = start("num_clients=6", "stack=4", "local.batch_size=8", "local.epochs=2")
    groups = stack_groups(run, range(6))
    assert sorted(len(group) for group in groups) == [2, 4]
    group = max(groups, key=len)
    stack, sizes = run.trainer.stack(group[0]), []
    step = stack._step
    monkeypatch.setattr(stack, "_step", lambda *rest: sizes.append(rest[1] - rest[0]) or step(*rest))
    run.trainer.train_stack(group, 0, run.exchange.replica, evaluate=False)
    most = max(len(client.train_indices) // 8 for client in group) * 2
    assert sum(size > 1 for size in sizes) <= most
    assert sum(sizes) == sum(2 * -(-len(c.train_indices) // 8) - 2 * (len(c.train_indices) % 8 == 1) for c in group)


@pytest.mark.parametrize("on_nonfinite", ["skip", "abort"])
def test_a_client_that_fails_harms_no_other(on_nonfinite: str):
    local, healthy = (make("stack=3", f"on_nonfinite={on_nonfinite}") for _ in range(2))
    for each in (local, healthy):
        each.trainer.train_stack(each.clients, 0, each.replica, evaluate=False)
    broken = local.clients[1]
    if on_nonfinite == "abort":
        broken.tensors["private"].fill_(float("nan"))
    else:
        broken.tensors["optimizer.private.momentum_buffer"].fill_(float("nan"))
    before = broken.copy()["private"].clone()
    first, fault, last = local.trainer.train_stack(local.clients, 1, local.replica, evaluate=True)
    assert isinstance(fault, RunFault)
    assert fault.location().startswith("round 2, client 1, layer teacher.")
    if on_nonfinite == "skip":
        assert torch.equal(broken.tensors["private"], before)
    one, _, other = healthy.trainer.train_stack(healthy.clients, 1, healthy.replica, evaluate=True)
    assert torch.equal(first.update, one.update)
    assert torch.equal(last.update, other.update)
    assert first.teacher_sums.tolist() == one.teacher_sums.tolist()


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["method=scaffold"], "method=scaffold trains clients one at a time"),
        (["method=fedprox"], "method=fedprox trains clients one at a time"),
        ([*BATCH_NORM, "distillation.hidden=false"], "networks with buffers (BatchNorm) cannot be stacked"),
        (
            ["student={name: 'worker_parts:Forgetful', learning_rate: 0.1}"],
            "vmap: called random operation while in randomness error mode",
        ),
    ],
    ids=["scaffold", "fedprox", "BatchNorm", "dropout"],
)
def test_what_cannot_be_stacked_is_said_at_the_start(
    overrides: list[str], reason: str, tmp_path_factory: pytest.TempPathFactory, capfd: pytest.CaptureFixture
):
    output = tmp_path_factory.mktemp("refused") / "log.h5"
    assert main(["--output", str(output), "num_clients=4", "rounds=1", "stack=2", *overrides]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("fedkd_mpi: stack=2: ")
    assert reason in line
    assert line.endswith(("set stack=1", "set stack=1 or norm=group"))
    assert not output.exists()
