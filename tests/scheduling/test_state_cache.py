"""States of clients in files: the same bits, bounded memory, nothing left behind."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from sessions import SMALL, assert_same_run
from simulate import play

from fedkd_mpi.client.client import Client
from fedkd_mpi.errors import RunFault
from fedkd_mpi.run import main
from fedkd_mpi.scheduling.schedule import OwnClients
from fedkd_mpi.scheduling.state_cache import ClientStateCache

STATES = ["compression.error_feedback=ef", "evaluate.global_teachers=true", "rounds=4"]


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def client(index: int) -> Client:
    nothing = np.arange(0)
    return Client(index, nothing, nothing, {"private": torch.full((3,), float(index)), "count": torch.zeros(())})


def test_states_in_files_change_no_bit_also_when_resumed(scratch: Path) -> None:
    whole, cached = scratch / "whole.h5", scratch / "cached.h5"
    assert main([*SMALL, *STATES, "--output", str(whole)]) == 0
    arguments = [*SMALL, *STATES, "clients_in_memory=1", "time_limit=0.001", "--output", str(cached)]
    assert main(arguments) == 75
    assert main(["--resume", str(cached), "--trust-log", "time_limit=null", "clients_in_memory=2"]) == 0
    assert_same_run(whole, cached)
    assert not list(scratch.glob("fedkd-clients-*"))


def test_no_more_clients_are_in_memory_than_asked_for(scratch: Path) -> None:
    run, _ = play("clients_in_memory=2", "num_clients=5", "rounds=2")
    assert sum(not client.offloaded for client in run.clients.values()) == 2
    assert all(client.tensors for client in run.clients.values())


def test_what_was_changed_is_read_back(scratch: Path) -> None:
    clients = [client(index) for index in range(4)]
    schedule = OwnClients(dict(enumerate(clients)), ClientStateCache(1, "cpu", 4))
    for _ in range(3):
        for group in schedule.each([clients[:1], clients[1:3], clients[3:]]):
            for one in group:
                one.tensors["private"] += 1
        assert [one.offloaded for one in clients] == [True, True, True, False]
    kept = clients[0].copy()
    assert clients[0].offloaded
    assert [one.tensors["private"].tolist() for one in clients] == [[index + 3.0] * 3 for index in range(4)]
    assert torch.equal(kept["private"], clients[0].tensors["private"])


def test_no_room_for_states_is_said(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(scratch / "missing"))
    cache = ClientStateCache(1, "cpu", 2)
    cache.release(client(0))
    with pytest.raises(RunFault, match="TMPDIR"):
        cache.release(client(1))
