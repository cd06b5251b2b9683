"""A program that is tried: what becomes of one that crashes or hangs."""

from __future__ import annotations

import pytest

from fedkd_mpi.common import probe as probes
from fedkd_mpi.common.probe import probe


def test_a_probe_that_crashes_is_a_finding() -> None:
    assert probe("pass") == (True, "")
    assert probe("import os; os.kill(os.getpid(), 11)") == (False, "the probe crashed with signal 11")
    assert probe("raise ValueError('no GPU buffers')") == (False, "ValueError: no GPU buffers")


def test_a_probe_that_hangs_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "PROBE_SECONDS", 0.5)
    assert probe("import time; time.sleep(100)") == (False, "the probe hung for 0 s")
