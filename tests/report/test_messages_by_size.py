"""Messages by size and stragglers, against sums over the log worked out row by row."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from made_logs import a_round, write

from fedkd_mpi.report import messages
from fedkd_mpi.report.__main__ import main
from fedkd_mpi.report.runs import Run, Target

UP = [(900, 1500), (1999, 2000), (70_000, 950)]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = []
    for number, up in enumerate(UP):
        rounds, *others = a_round(number, up=up, down=4_000 + number)
        rounds |= {"seconds_gather": 0.5 * (number + 1), "seconds_broadcast": 2.0, "seconds_wait": 3.0}
        made.append((rounds, *others))
    return Run(write(tmp_path / "a.h5", made), Target())


def test_every_message_is_in_the_class_of_its_size(run: Run):
    found = messages.by_size(run)
    sizes = np.array(UP).ravel()
    for each in (each for each in found if each.leg == "uplink"):
        inside = (sizes >= each.least) & (sizes < each.limit)
        assert (each.messages, each.total_bytes) == (inside.sum(), sizes[inside].sum())
        moving = sum(
            0.5 * (n + 1) * size / sum(up) for n, up in enumerate(UP) for size in up if each.least <= size < each.limit
        )
        assert each.seconds_moving == pytest.approx(moving)
        assert each.seconds_waiting == pytest.approx(1.5 * inside.sum())
    assert [(each.least, each.limit) for each in found] == [
        (500, 1000),
        (1000, 2000),
        (2000, 5000),
        (50_000, 100_000),
        (2000, 5000),
    ]
    (down,) = (each for each in found if each.leg == "downlink")
    assert (down.messages, down.total_bytes) == (6, run.rounds["downlink_bytes"].sum())
    assert down.seconds_moving == pytest.approx(6.0)
    for leg in ("uplink", "downlink"):
        assert sum(each.total_bytes for each in found if each.leg == leg) == run.rounds[f"{leg}_bytes"].sum()


def test_stragglers_are_counted_by_client_and_rank(tmp_path: Path):
    seconds = [[1.0, 2.5, 1.0], [1.0, 1.0, np.nan], [4.0, 1.0, 1.0]]
    made = []
    for number, row in enumerate(seconds):
        rounds, uplink, downlink, mpi, training = a_round(number)
        training |= {name: np.resize(values, 3) for name, values in training.items()}
        training |= {"client": np.array([0, 1, 1]), "mpi_rank": np.array([1, 2, 2]), "seconds_train": np.array(row)}
        made.append((rounds, uplink, downlink, mpi, training))
    found = Run(write(tmp_path / "a.h5", made), Target())
    assert found.late.tolist() == [False, True, False, False, False, False, True, False, False]
    clients = messages.late(found, "client")
    assert [(each.index, each.trainings, each.stragglers, each.slowest) for each in clients] == [
        (0, 3, 1, 2),
        (1, 6, 1, 1),
    ]
    assert [each.seconds_train for each in messages.late(found, "mpi_rank")] == [6.0, 6.5]
    assert found.row(Target())["stragglers"] == 2


def test_the_command_shows_them_and_json_has_them_exactly(run: Run, capsys: pytest.CaptureFixture):
    assert main([str(run.path), "--messages"]) == 0
    text = capsys.readouterr().out
    assert [title in text for title in ("Messages by size", "Stragglers by MPI rank", "Stragglers by client")] == [
        True
    ] * 3
    assert main([str(run.path), "--messages", "--json"]) == 0
    (made,) = json.loads(capsys.readouterr().out)["messages"].values()
    assert sum(each["total_bytes"] for each in made["messages"] if each["leg"] == "uplink") == np.array(UP).sum()
    assert made["stragglers_by_client"][1]["trainings"] == 3


def test_a_log_without_rounds_has_no_messages(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert main([str(write(tmp_path / "a.h5", [])), "--messages"]) == 0
