"""Seconds by phase: each second is counted once."""

from __future__ import annotations

import pytest

from fedkd_mpi.common import stopwatch
from fedkd_mpi.common.stopwatch import Stopwatch


def test_a_phase_inside_another_is_counted_in_the_inner_one_alone(monkeypatch: pytest.MonkeyPatch):
    now = [0.0]
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: now[0])
    watch = Stopwatch()
    with watch("aggregate"):
        now[0] += 1
        for _ in range(2):
            with watch("gather"):
                now[0] += 10
                with watch("wait"):
                    now[0] += 100
        now[0] += 2
    with watch("gather"):
        now[0] += 5
    taken = watch.take()
    assert (taken["aggregate"], taken["gather"], taken["wait"], taken["total"]) == (3, 25, 200, 228)
    assert watch.take()["aggregate"] == 0
