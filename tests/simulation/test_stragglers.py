"""A local training that keeps a round waiting has an event in the log, and one that is slow by chance has none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from simulate import play

from fedkd_mpi.client.trainer import LocalTrainer
from fedkd_mpi.simulation.stragglers import straggler

HOSTS = ["node1", "node2"]


def test_the_slowest_client_of_a_round_is_named_once(monkeypatch: pytest.MonkeyPatch):
    train, rounds = LocalTrainer.train, []

    def late(self, client, *more, **options):
        result = train(self, client, *more, **options)
        rounds.append(client.id)
        slow = {2: 40.0, 1: 30.0}.get(client.id, 0.0) if len(rounds) > 4 else 0.0
        return replace(result, seconds_train=result.seconds_train + slow)

    monkeypatch.setattr(LocalTrainer, "train", late)
    _, log = play("num_clients=4", "rounds=2")
    events = log["events"]
    (at,) = np.flatnonzero(["straggler" in text for text in events["message"]])
    assert (events["round"][at], events["client"][at], events["level"][at]) == (1, 2, "info")
    assert events["message"][at].startswith("straggler: local training took 40.")


@pytest.mark.parametrize(
    ("seconds", "place"),
    [
        ([10.0, 11.0, 31.0, 12.0], 2),
        ([10.0, np.nan, 31.0, 12.0], 2),  # a skipped client is none
        ([10.0, 11.0, 19.0, 12.0], None),  # less than twice the median
        ([0.1, 0.1, 4.0, 0.1], None),  # 40 times, but nobody waits long
        ([10.0], None),
        ([np.nan, np.nan], None),
        ([], None),
    ],
)
def test_a_straggler_takes_twice_the_median_and_seconds_more(seconds: list[float], place: int | None):
    found = straggler(np.array(seconds), [1] * len(seconds), HOSTS)
    assert (found and found.place) == place
    if found:
        assert found.text.endswith("times the median of its round, on rank 1 (node2)")
