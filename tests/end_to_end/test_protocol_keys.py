"""The keys of published protocols in whole runs: pooled data, their partitions, fixed order, renewed optimisers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from command import Command
from sessions import SMALL, assert_same_begun_elsewhere
from simulate import play, start

from fedkd_mpi.client.scoring import score

PROTOCOL = [
    *("data.pooled=0", "data.pixels=half", "partition={kind: dirichlet, alpha: 0.5, balanced: true, min_samples: 8}"),
    *("partition.test_fraction=0.25", "local={epochs: 1, batch_size: 10, shuffle: false, drop_last: true}"),
    *("optimizer={name: sgd, momentum: 0.9, renew: true, clip_norm: 10}", "rounds=3"),
]


def test_begun_on_three_processes_and_continued_on_one_a_run_is_the_same(tmp_path: Path):
    assert_same_begun_elsewhere(tmp_path, *SMALL, *PROTOCOL)


def test_all_official_samples_are_the_clients_and_the_global_score_is_over_their_tests():
    official = start()
    run, log = play(*PROTOCOL)
    everything = len(official.data.train["y"]) + len(official.data.test["y"])
    clients = log["clients"]
    assert (clients["train_samples"] + clients["test_samples"]).sum() == everything
    held_out = np.concatenate([test for _, test in run.data.clients])
    assert log["clients"]["test_samples"].sum() == len(held_out)
    student = run.exchange.student
    student.load(run.exchange.replica)
    right, count = 0.0, 0
    for client, (_, test) in enumerate(run.data.clients):
        sums = score(run.task, student.module, run.data.train, test, "cpu")
        right, count = right + run.task.finish(sums)["accuracy"] * len(test), count + len(test)
        assert client < run.config.num_clients
    assert log["rounds"]["global_student_accuracy"][-1] == pytest.approx(right / count, abs=1e-12)


def test_a_share_is_held_out_and_nobody_else_has_it():
    run = start("data.pooled=0.1")
    labels = np.concatenate([run.data.train["y"], run.data.test["y"]])
    assert len(run.data.test["y"]) == len(run.data.test_indices) == round(0.1 * len(labels))
    samples = np.concatenate([np.concatenate(own) for own in run.data.clients])
    assert sorted(samples.tolist()) == list(range(len(run.data.train["y"])))


def test_pixels_run_from_minus_one_to_one():
    run = start("data.pixels=half")
    x = run.task.prepare(run.data.train, np.arange(200), "cpu")["x"]
    assert (x.min().item(), x.max().item()) == (-1.0, 1.0)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("partition={kind: iid, balanced: true}", "partition.balanced belongs to partition.kind=dirichlet, not iid"),
        ("partition={kind: iid, unbalanced: true}", "partition.unbalanced belongs to partition.kind=pathological"),
        ("data.pooled=1", "data.pooled"),
        ("data.pixels=whole", "data.pixels"),
    ],
)
def test_keys_that_do_not_fit_are_refused(command: Command, override: str, says: str):
    code, _, err = command(override)
    assert (code, err.count("\n")) == (2, 1)
    assert says in err
