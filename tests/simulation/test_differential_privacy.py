"""Runs with differential privacy: what is sent, what is logged, when they end, and what is refused."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mpirun import mpirun
from sessions import SMALL
from simulate import play, start
from torch import nn
from worker_simulation import PRIVATE
from worker_simulation import SMALL as TINY

from fedkd_mpi import costlog
from fedkd_mpi.client.trainer import LocalTrainer
from fedkd_mpi.codecs import factory
from fedkd_mpi.codecs.message import make_message
from fedkd_mpi.common.random_streams import generator
from fedkd_mpi.config.compression import CompressionConfig
from fedkd_mpi.config.load import load
from fedkd_mpi.config.training import ServerConfig
from fedkd_mpi.errors import RunFault, UserError
from fedkd_mpi.models.flat import FlatModel
from fedkd_mpi.privacy.accountant import Accountant, Sampling, epsilon_of, most_frequent
from fedkd_mpi.privacy.mechanism import Mechanism
from fedkd_mpi.run import main
from fedkd_mpi.scheduling import cohort
from fedkd_mpi.simulation.differential_privacy import Protection
from fedkd_mpi.simulation.private_sum import PrivateSum
from fedkd_mpi.simulation.server import Server

NOISED = [*PRIVATE, "privacy.noise_multiplier=1", "compression.codec=none"]
CLIP = 0.1


def server(clip: float, noise_multiplier: float, clients: int) -> Server:
    torch.manual_seed(0)
    student = FlatModel(nn.Sequential(nn.Linear(9, 20), nn.Linear(20, 3)), "cpu")
    codec = factory.build(CompressionConfig(codec="none"), student.parameter_layers)
    mechanism = Mechanism(clip, noise_multiplier, False, 3)
    private = partial(PrivateSum, codec, "cpu", mechanism, student.parameter_layers, clients)
    return Server(ServerConfig(), student, codec, "cpu", 3, clients, private)


def mean_of(of: Server, updates: list[list[np.ndarray] | None], round_index: int) -> np.ndarray:
    messages = []
    for client, update in enumerate(updates):
        tensors = None if update is None else [torch.from_numpy(part).float() for part in update]
        records = None if tensors is None else of.codec.encode(tensors, 0.95, {}, np.random.default_rng(0))
        whole = make_message(round_index, client, 7 + client, records)
        messages.append((whole.parsed, whole.records(4)))
    mean = of.aggregate(round_index, messages)
    assert mean is not None
    return np.concatenate([view.double().numpy().reshape(-1) for view in of.student.exchanged(mean)])


def noise_of(of: Server, deviation: float, round_index: int) -> np.ndarray:
    rng = generator(3, "differential privacy", round_index)
    return deviation * np.concatenate([rng.standard_normal(layer.numel) for layer in of.student.parameter_layers])


@pytest.mark.parametrize("skipped", [0, 1, 3])
def test_the_mean_is_that_of_clipped_updates_with_noise_over_the_whole_cohort(skipped: int) -> None:
    of, rng = server(1.5, 0.8, 4), np.random.default_rng(1)
    updates: list[Any] = [
        [scale * rng.standard_normal(layer.shape) for layer in of.student.parameter_layers] for scale in (1, 1e-3, 30)
    ]
    updates[:skipped] = [None] * skipped
    expected = noise_of(of, 1.2, 5)
    for update in filter(None, updates):
        flat = np.concatenate([part.astype(np.float32).astype(np.float64).reshape(-1) for part in update])
        expected += flat * min(1.0, 1.5 / np.linalg.norm(flat))
    np.testing.assert_allclose(mean_of(of, updates, 5), expected / 4, rtol=1e-6, atol=1e-8)


def test_a_message_that_decodes_to_no_number_is_a_fault_that_names_the_client() -> None:
    of = server(1.0, 1.0, 2)
    bad = [np.full(layer.shape, np.inf) for layer in of.student.parameter_layers]
    with pytest.raises(RunFault, match="decoded update is not finite") as caught:
        mean_of(of, [None, bad], 0)
    assert caught.value.client == 1


def test_the_log_has_epsilon_norms_and_the_share_that_was_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    norms, on_update = {}, Protection.on_update

    def seen(self: Protection, student: FlatModel, update: torch.Tensor, index: int, client: int) -> float:
        norms[index, client] = np.linalg.norm(update.double().numpy())
        return on_update(self, student, update, index, client)

    monkeypatch.setattr(Protection, "on_update", seen)
    clip = 3.2
    run, log = play(*NOISED, "num_clients=6", "cohort_size=3", "rounds=4", f"privacy.clip_norm={clip}")
    rounds, uplink = log["rounds"], log["uplink"]
    expected = [norms[key] for key in zip(uplink["round"].tolist(), uplink["client"].tolist(), strict=True)]
    np.testing.assert_allclose(uplink["norm"], expected, rtol=1e-9)
    shares = [(uplink["norm"][uplink["round"] == index] > clip).mean() for index in range(4)]
    assert rounds["clipped_share"].tolist() == shares
    assert 0 < np.mean(shares) < 1
    counts = most_frequent(cohort.sample(0, index, 6, 3) for index in range(4))
    assert counts[-1] > 2
    assert rounds["epsilon"].tolist() == [epsilon_of(count**0.5, 1e-5) for count in counts]
    assert str(run.protection) in log["events"]["message"][0]
    assert "epsilon" not in play("rounds=1")[1]["rounds"]


def test_one_client_changes_what_is_sent_by_c_over_n_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """With residuals, which make decoded messages longer than C, and noise that is the same in both runs."""
    update, means = LocalTrainer._update, []
    keys = [*NOISED, "num_clients=4", "compression.codec=quantize", "compression.bits=4"]

    def absent(self: LocalTrainer, student: Any, index: int, client: int) -> Any:
        found = update(self, student, index, client)
        return found.zero_() if client == 2 else found

    aggregate = Server.aggregate

    def kept(self: Server, index: int, messages: Any) -> Any:
        means.append(aggregate(self, index, messages))
        return means[-1]

    monkeypatch.setattr(Server, "aggregate", kept)
    play(*keys, "compression.error_feedback=ef", "rounds=1")
    monkeypatch.setattr(LocalTrainer, "_update", absent)
    play(*keys, "compression.error_feedback=ef", "rounds=1")
    moved = float((means[1] - means[0]).double().norm())
    assert 0.5 * CLIP / 4 < moved <= CLIP / 4 * (1 + 1e-6)


def test_a_clients_message_is_its_clipped_update_with_its_own_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    updates, on_update = {}, Protection.on_update

    def seen(self: Protection, student: FlatModel, update: torch.Tensor, index: int, client: int) -> float:
        parts = [view.clone() for view in student.exchanged_parts(update)[0]]
        norm = on_update(self, student, update, index, client)
        updates[client] = parts, [view.clone() for view in student.exchanged_parts(update)[0]]
        return norm

    monkeypatch.setattr(Protection, "on_update", seen)
    play(*NOISED, "privacy.where=client", "num_clients=3", "rounds=1")
    for client, (before, after) in updates.items():
        rng, norm = (
            generator(0, "differential privacy", 0, client),
            sum(float(b.double().square().sum()) for b in before),
        )
        for one, other in zip(before, after, strict=True):
            noise = CLIP * rng.standard_normal(tuple(one.shape))
            expected = one.double().numpy() * min(1, CLIP / norm**0.5) + noise
            np.testing.assert_allclose(other.double().numpy(), expected, atol=1e-6)


def test_noise_has_a_flat_spectrum_which_svd_sends_raw_and_rdsvd_does_not() -> None:
    down = {}
    for codec in ("svd", "rdsvd"):
        _, log = play(
            *NOISED, "num_clients=4", "student.hidden=[64]", f"compression.codec={codec}", "privacy.clip_norm=1"
        )
        down[codec] = log["downlink"]
    compressible = log["layers"]["compressible"]
    dense = 4 * log["layers"]["numel"]
    assert (down["svd"]["layer_rank"] == -1).all()
    assert (down["svd"]["layer_bytes"] == dense).all()
    assert (down["rdsvd"]["layer_bytes"][:, compressible] < 0.6 * dense[compressible]).all()


def test_max_epsilon_ends_the_run_before_the_round_that_would_pass_it(tmp_path: Path, capsys: Any) -> None:
    log = tmp_path / "log.h5"
    most = Accountant(range(1, 7), 1.0, 1e-5).epsilon(4) + 0.01
    keys = [*TINY, *NOISED, "num_clients=3", "rounds=6", "evaluate.every=3", f"privacy.max_epsilon={most}"]
    assert main(["--output", str(log), *keys]) == 0
    found = costlog.read(log)
    assert found["attrs"]["status"] == "completed"
    assert found["rounds"]["epsilon"].shape == (4,)
    assert found["rounds"]["epsilon"][-1] <= most
    assert not np.isnan(found["rounds"]["global_student_accuracy"][[2, 3]]).any()  # the last one is evaluated
    said = "ended after 4 of 6 rounds: epsilon is 9.997, with the next round it would be"
    assert said in capsys.readouterr().out
    assert said in found["events"]["message"][-1]
    for text, code in (("rounds=6", "nothing to resume"), ("rounds=9", f"privacy.max_epsilon={most} ended the run")):
        with pytest.raises(SystemExit):
            main(["--resume", str(log), text])
        outcome = capsys.readouterr()
        assert code in outcome.out + outcome.err


@pytest.mark.slow
def test_a_run_that_goes_on_on_other_processes_has_the_bits_and_epsilon_of_one_in_a_piece(tmp_path: Path) -> None:
    keys = [*SMALL, *NOISED, "compression.codec=quantize", "compression.error_feedback=ef", "compression.t_end=0.95"]
    whole, parts = tmp_path / "whole.h5", tmp_path / "parts.h5"
    assert main(["--output", str(whole), *keys, "rounds=4"]) == 0
    assert main(["--output", str(parts), *keys, "rounds=2"]) == 0
    done = mpirun(3, "-m", "fedkd_mpi.run", "--resume", parts, "--trust-log", "rounds=4")
    assert done.returncode == 0, done.stderr
    one, other = costlog.read(whole), costlog.read(parts)
    for table in ("rounds", "uplink", "downlink", "training"):
        for name, values in one[table].items():
            if not name.startswith(("seconds", "mpi_rank")) and "accuracy" not in name:  # round 2 was the last one once
                assert values.tobytes() == other[table][name].tobytes(), name


def test_a_target_is_met_and_no_round_can_be_added(tmp_path: Path, capsys: Any) -> None:
    log = tmp_path / "log.h5"
    keys = [*TINY, *PRIVATE, "privacy.target_epsilon=8", "compression.codec=none", "num_clients=3", "rounds=3"]
    assert main(["--output", str(log), *keys]) == 0
    epsilon = costlog.read(log)["rounds"]["epsilon"]
    assert 7.99 < epsilon[-1] <= 8
    assert (np.diff(epsilon) > 0).all()
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        main(["--resume", str(log), "rounds=5"])
    assert "privacy.target_epsilon=8 sets the noise for all rounds together" in capsys.readouterr().err


def test_a_dry_run_says_epsilon_of_the_whole_run_and_how_loud_the_noise_is(capsys: Any) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--dry-run", "--json", *TINY, *NOISED, "num_clients=4", "rounds=5"])
    found = json.loads(capsys.readouterr().out)
    numbers = 64 * 16 + 16 + 16 * 10 + 10
    assert found["privacy"] == {
        "epsilon": pytest.approx(epsilon_of(5**0.5, 1e-5)),
        "delta": 1e-5,
        "rounds": 5,
        "noise_multiplier": 1.0,
        "noise_to_signal": pytest.approx(numbers**0.5 / 4),
    }


def test_secret_cohorts_of_clients_without_memory_are_sampled_without_replacement() -> None:
    pytest.importorskip("dp_accounting")
    keys = ["privacy.noise_multiplier=4", "num_clients=60", "cohort_size=2", "rounds=30", "partition.min_samples=2"]
    more = ["method=fedavg", "optimizer.momentum=0", "privacy.secret_cohorts=true", "compression.codec=none"]
    run = start(*PRIVATE, *keys, *more)
    counts = most_frequent(cohort.sample(0, index, 60, 2) for index in range(30))
    expected = Accountant(counts, 4.0, 1e-5, Sampling(2, 60)).epsilon(30)
    assert run.protection is not None
    assert run.protection.epsilon == expected < Accountant(counts, 4.0, 1e-5).epsilon(30)


REFUSED = {
    "privacy.clip_norm=null": "privacy.noise_multiplier needs privacy.clip_norm",
    "privacy.noise_multiplier=null": "needs one of privacy.noise_multiplier and privacy.target_epsilon",
    "privacy.target_epsilon=3": "needs one of privacy.noise_multiplier and privacy.target_epsilon",
    "privacy.delta=null": "privacy.clip_norm needs privacy.delta",
    "privacy.delta=0.03125": "must be below 1 / num_clients",
    "privacy.max_epsilon=0.5": "admits no round: the first one has epsilon 4.377",
    "method=local": "method=local exchanges nothing",
    "method=fedproto": "exchanges means per class",
    "method=feddistill": "exchanges means per class",
    "method=scaffold": "control variates",
    "method=feddropout": "leaves out a part of the network",
    "server.weighting=samples": "server.weighting=samples lets a client with many samples change the mean more",
    "server.aggregator=worker_parts:median": "is no sum, to which noise is added",
    "compression.error_feedback=ef21": "ef21 needs the same estimates at client and server",
    "compression.codec=fetchsgd": "adds up sketches",
    "compression.codec=dadaquant": "follows losses of clients, which have no noise",
    "privacy.secret_cohorts=true": "all clients take part in every round",
    "privacy.secret_cohorts=true cohort_size=4": "for clients that remember nothing, but with method=fedkd they keep",
    "privacy.secret_cohorts=true cohort_size=4 method=fedavg": "they keep their optimisers (set optimizer.renew=true)",
    "privacy.secret_cohorts=true cohort_size=4 method=fedavg optimizer.renew=true compression.error_feedback=ef": (
        "with error_feedback=ef keeps tensors of theirs"
    ),
    "privacy.secret_cohorts=true cohort_size=4 sampler=worker_parts:sampler": "needs sampler=uniform",
    "privacy.secret_cohorts=true privacy.where=client": "the server sees with where=client who sends what",
    "privacy.where=client on_nonfinite=skip": "sends a message without noise that there is no update",
    "stop.metric=student_loss": "ends the run by the clients' own samples, which epsilon does not cover",
    "stop.metric=accuracy data.pooled=0": "ends the run by the clients' own samples",
    "student={name: resnet, depth: 8, width: 4, norm: batch, learning_rate: 0.05}": (
        "travels as it is, neither clipped nor noised: set student.norm=group, or server.buffers=local"
    ),
}


@pytest.mark.parametrize("keys", REFUSED, ids=[keys[:70] for keys in REFUSED])
def test_what_has_no_bound_is_refused_in_one_line(keys: str) -> None:
    own = [keys] if keys.startswith("student=") else keys.split()
    with pytest.raises(UserError) as caught:
        start(*NOISED, *own)
    assert REFUSED[keys] in str(caught.value)
    assert "\n" not in str(caught.value)


ADMITTED = [
    ["privacy.where=client", "server.weighting=samples", "compression.codec=fetchsgd"],
    ["privacy.where=client", "compression.error_feedback=ef21", "compression.codec=quantize"],
    ["server.optimizer=fedadam", "server.learning_rate=0.01", "on_nonfinite=skip"],
    ["method=fedprox", "compression.codec=powersgd", "compression.error_feedback=ef"],
    ["method=lgfedavg"],
    ["stop.metric=accuracy", "exchange=gradient_sum"],
    ["student={name: resnet, depth: 8, width: 4, norm: batch, learning_rate: 0.05}", "server.buffers=local"],
]


@pytest.mark.parametrize("keys", ADMITTED, ids=str)
def test_what_is_post_processing_is_admitted(keys: list[str]) -> None:
    assert load(overrides=[*TINY, *NOISED, *keys]).privacy.differential
    assert start(*NOISED, *keys).protection is not None
