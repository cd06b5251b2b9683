"""The simulation: the same bits on any number of processes; each round against float64 arithmetic on its messages."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matrices import smallest_ranks
from same_run import assert_same_run, tensors
from simulate import play, start
from worker_simulation import CASES, LAUNCHES, SMALL

from fedkd_mpi import costlog
from fedkd_mpi.codecs.message import Message
from fedkd_mpi.communication.world import SingleProcessWorld
from fedkd_mpi.config.load import load
from fedkd_mpi.models.flat import FlatModel
from fedkd_mpi.scheduling import cohort
from fedkd_mpi.simulation import rounds as simulation_rounds
from fedkd_mpi.simulation.accounting import Accounting
from fedkd_mpi.simulation.session import begin
from fedkd_mpi.simulation.state import Simulation


@pytest.mark.parametrize(
    ("mpi", "ranks", "case"), [(*launch, case) for launch, cases in LAUNCHES.items() for case in cases]
)
def test_the_bits_do_not_depend_on_the_processes(simulated: Callable[..., Path], mpi: str, ranks: int, case: str):
    assert_same_run(simulated(mpi, ranks, *LAUNCHES[mpi, ranks]), simulated("openmpi", 1, *CASES), case, ranks)


def test_33_processes_have_the_bits_of_one(simulated: Callable[..., Path]):
    assert_same_run(simulated("openmpi", 33, "wide"), simulated("openmpi", 1, *CASES), "wide", 33)


def test_the_cases_are_what_they_are_meant_to_be(simulated: Callable[..., Path]):
    folder = simulated("openmpi", 1, *CASES)
    logs = {case: costlog.read(folder / f"{case}.h5") for case in CASES}
    assert (logs["full"]["downlink"]["layer_rank"] > 0).any()
    assert (logs["raw"]["downlink"]["layer_rank"] == -1).all()
    assert (logs["partial"]["rounds"]["cohort_size"] == 3).all()
    assert logs["skipped"]["rounds"]["skipped_clients"].tolist().count(1) in range(1, 6)
    assert "norm.running_var" in logs["averaged"]["layers"]["name"]
    assert "norm.running_var" not in logs["personal"]["layers"]["name"]
    assert any(name.endswith("/buffers") for name in tensors(folder, "personal", 1))
    assert any("exp_avg_sq" in name for name in tensors(folder, "partial", 1))
    assert "student" not in tensors(folder, "alone", 1)


def decode(message: Message, run: Simulation) -> list[tuple[int, np.ndarray]]:
    """Return rank and float64 matrix (or vector) of each layer of a message, read byte by byte."""
    raw, at, decoded = message.payload.tobytes(), 0, []
    for layer in run.exchange.student.exchanged_layers:
        _, rank, size = struct.unpack_from("<BiQ", raw, at)
        numbers = np.frombuffer(raw[at + 13 : at + 13 + size], "<f4").astype(np.float64)
        at += 13 + size
        rows = layer.shape[0]
        if rank >= 0:
            columns = layer.numel // rows
            numbers = numbers[: rows * rank].reshape(rows, rank) @ numbers[rows * rank :].reshape(rank, columns)
        decoded.append((rank, numbers.reshape(layer.shape)))
    assert at == len(raw)
    return decoded


@pytest.mark.parametrize(
    "overrides",
    [
        ["num_clients=4"],
        ["num_clients=6", "cohort_size=3", "rounds=4", "server.weighting=samples", "server.learning_rate=0.7"],
        ["num_clients=4", "compression.codec=none"],
        ["num_clients=3", "student={name: resnet, depth: 8, width: 4, norm: batch, learning_rate: 0.05}"],
    ],
    ids=["uniform", "by samples", "raw", "convolutions"],
)
def test_a_round_is_mean_truncation_and_step_in_float64(monkeypatch: pytest.MonkeyPatch, overrides: list[str]):
    communicate, uplink, downlink = simulation_rounds.communicate, simulation_rounds.uplink, simulation_rounds.downlink
    seen, messages, pending_downlinks = [], [], []

    def kept(*arguments: Any) -> Iterator[Message]:
        for message in uplink(*arguments):
            messages.append(message)
            yield message

    def answered(*arguments: Any) -> Message:
        pending_downlinks.append(downlink(*arguments))
        return pending_downlinks[-1]

    def checked(run: Simulation, held: Any, watch: Any, this: Any, own: Any) -> None:
        before = [view.double().numpy().copy() for view in held.student.exchanged(held.replica)]
        messages.clear()
        communicate(run, held, watch, this, own)
        answer = pending_downlinks[-1]
        seen.append(this.index)
        samples = [len(run.data.clients[message.parsed.sender][0]) for message in messages]
        weights = samples if run.config.server.weighting == "samples" else [1] * len(messages)
        updates = [decode(message, run) for message in messages]
        after = [view.double().numpy() for view in held.student.exchanged(held.replica)]
        for i, (rank, sent) in enumerate(decode(answer, run)):
            mean = np.average([update[i][1] for update in updates], axis=0, weights=weights)
            scale = np.abs(mean).max()
            if mean.ndim >= 2 and run.config.compression.codec == "svd":
                matrix = mean.reshape(len(mean), -1)
                ranks = smallest_ranks(torch.from_numpy(matrix), this.threshold, tie=1e-5)
                raw = {smallest * sum(matrix.shape) >= matrix.size for smallest in ranks}
                assert rank in ranks or (rank == -1 and True in raw)
                if rank >= 0:
                    left, sigma, right = np.linalg.svd(matrix, full_matrices=False)
                    mean = ((left[:, :rank] * sigma[:rank]) @ right[:rank]).reshape(mean.shape)
            else:
                assert rank == -1
            np.testing.assert_allclose(sent, mean, rtol=0, atol=2e-5 * scale)
            if i >= len(held.student.parameter_layers):  # BatchNorm's statistics take the place of the old ones
                np.testing.assert_allclose(after[i], sent, rtol=0, atol=0)
                continue
            step = run.config.server.learning_rate * sent
            np.testing.assert_allclose(after[i], before[i] + step, rtol=0, atol=1e-6 * (1 + np.abs(before[i]).max()))

    monkeypatch.setattr(simulation_rounds, "communicate", checked)
    monkeypatch.setattr(simulation_rounds, "uplink", kept)
    monkeypatch.setattr(simulation_rounds, "downlink", answered)
    run, _ = play(*overrides)
    assert seen == list(range(run.config.rounds))


def test_scores_are_those_of_the_networks():
    run, log = play("num_clients=4", "evaluate.global_teachers=true", "rounds=3", "evaluate.every=2")
    rounds, (mean,), (std,) = log["rounds"], run.data.meta["mean"], run.data.meta["std"]
    x = (torch.from_numpy(run.data.test["x"].astype(np.float64)) / 16 - mean) / std

    def accuracy(network: FlatModel, flat: torch.Tensor, depth: int, prefix: str = "") -> float:
        pairs = zip(network.layers, network.views(flat), strict=True)
        named = {layer.name.removeprefix(prefix): view.double() for layer, view in pairs}
        hidden = x.flatten(1)
        for i in range(depth):
            hidden = torch.relu(hidden @ named[f"layers.{i}.weight"].T + named[f"layers.{i}.bias"])
        logits = hidden @ named["head.weight"].T + named["head.bias"]
        return float(np.mean(logits.argmax(1).numpy() == run.data.test["y"]))

    assert rounds["global_student_accuracy"][-1] == accuracy(run.exchange.student, run.exchange.replica, 1)
    private, clients = run.trainer.private, run.clients.values()
    teachers = [accuracy(private, client.tensors["private"], 2, "teacher.") for client in clients]
    assert rounds["global_teacher_accuracy"][-1] == pytest.approx(np.mean(teachers), rel=1e-12)
    known = {name: (~np.isnan(values)).tolist() for name, values in rounds.items() if "accuracy" in name}
    assert known.pop("global_teacher_accuracy") == [False, False, True]
    assert set(map(tuple, known.values())) == {(False, True, True)}


# Who takes part in each of five rounds, of three clients.
COHORTS = [[0], [0], [1], [0], [2]]


@pytest.mark.parametrize("codec", ["none", "svd"])
def test_catching_up_costs_the_missed_broadcasts_or_the_dense_student(monkeypatch: pytest.MonkeyPatch, codec: str):
    monkeypatch.setattr(cohort, "sample", lambda seed, index, clients, size: COHORTS[index])
    settings = [f"compression.codec={codec}", "compression.t_start=0.2", "compression.t_end=0.2", "student.hidden=[64]"]
    _, log = play("num_clients=3", "cohort_size=1", "rounds=5", *settings)
    dense = 4 * (64 * 64 + 64 + 10 * 64 + 10)
    sent = log["downlink"]["bytes"]
    expected = [0, 0, min(sent[0] + sent[1], dense), min(sent[2], dense), min(sum(sent[:4]), dense)]
    assert log["rounds"]["catchup_bytes"].tolist() == expected
    assert (expected[2] < dense) == (expected[3] < dense) == (codec == "svd")


def test_the_cohort_is_that_of_seed_and_round(simulated: Callable[..., Path]):
    folder = simulated("openmpi", 1, *CASES)
    log = costlog.read(folder / "partial.h5")
    for index in range(6):
        drawn = log["uplink"]["client"][log["uplink"]["round"] == index]
        assert drawn.tolist() == cohort.sample(0, index, 7, 3)
    assert log["rounds"]["catchup_bytes"].any()
    assert not costlog.read(folder / "full.h5")["rounds"]["catchup_bytes"].any()


def test_a_round_without_any_update_leaves_the_student_as_it_was(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("worker_parts.VICTIMS", np.arange(5000))  # all samples
    settings = ["num_clients=2", "task=worker_parts:Poisoned", "on_nonfinite=skip"]
    run, log = play(*settings)
    assert torch.equal(run.exchange.replica, start(*settings).exchange.replica)
    assert not any(client.tensors for client in run.clients.values())
    rounds, header = log["rounds"], 40
    events = list(zip(*(log["events"][name] for name in ("round", "client", "message")), strict=True))
    for name in ("uplink_bytes", "uplink_header_bytes", "downlink_bytes", "downlink_header_bytes"):
        assert rounds[name].tolist() == [2 * header, 2 * header]
    assert not rounds["uplink_paper_bytes"].any()
    assert not rounds["downlink_paper_bytes"].any()
    assert rounds["skipped_clients"].tolist() == [2, 2]
    assert np.isnan(rounds["student_loss"]).all()
    assert np.isnan(rounds["teacher_accuracy"]).all()
    assert np.isnan(rounds["global_student_accuracy"]).all()  # the test set is poisoned as well
    said = [(number, client) for number, client, text in events if "not finite (layer teacher.layers.0.weight)" in text]
    assert said == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [(number, client) for number, client, text in events if "logits are NaN" in text] == [(0, -1), (1, -1)]


def test_a_round_is_logged_while_the_next_begins_or_whatever_ends_the_run(tmp_path: Path):
    config, world, rows = load(overrides=[*SMALL, "num_clients=4", "rounds=5"]), SingleProcessWorld(), []
    session = begin(config, world, tmp_path / "log.h5", overwrite=False)
    accounting = Accounting(session.simulation, session.writer, lambda row: rows.append(row["round"]))
    logged = []

    def boundary(done: int) -> None:
        logged.append(rows.copy())
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulation_rounds.simulate(session.simulation, accounting, boundary)
    assert logged == [[], [], [0], [0, 1]]
    assert rows == [0, 1, 2]
    assert costlog.read(tmp_path / "log.h5")["rounds"]["round"].tolist() == [0, 1, 2]
