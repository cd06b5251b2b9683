"""Byte sums of the log: they agree with one another and with what was handed to MPI."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from simulate import play
from worker_simulation import CASES, CODECS, EVERY, LAUNCHES

from fedkd_mpi import costlog

ALL = {("openmpi", 1): EVERY} | {launch: cases for launch, cases in LAUNCHES.items() if launch[1] > 2}
of_all = pytest.mark.parametrize(
    ("launch", "case"),
    [
        pytest.param(launch, case, id=f"{launch[0]}-{launch[1]}-{case}")
        for launch, cases in ALL.items()
        for case in cases
    ],
    indirect=["launch"],
)
HEADER, TAG = 40, 13  # bytes of a message's header and of a layer's tag, docs of codecs/wire.py
TEACHER = 64 * 32 + 32 + 32 * 16 + 16 + 16 * 10 + 10
THREE = [64 * 9 + 9 + 9 * 8 + 8 + 8 * 10 + 10, 64 * 5 + 5 + 5 * 10 + 10, 4 * 9 + 4 + 4 * 3 * 3 * 6 + 6 + 6 * 10 + 10]


@pytest.fixture(params=ALL, ids=lambda launch: f"{launch[0]}-{launch[1]}")
def launch(request: pytest.FixtureRequest, simulated: Callable[..., Path]) -> tuple[int, Path]:
    """Number of processes and folder of a launch of all cases."""
    mpi, ranks = request.param
    return ranks, simulated(mpi, ranks, *(CASES if ranks == 1 else LAUNCHES[mpi, ranks]))


def by_round(log: dict[str, Any], table: str, values: np.ndarray) -> np.ndarray:
    """Add the rows of a table up by round."""
    rounds = log["rounds"]["round"]
    return np.array([values[log[table]["round"] == number].sum(axis=0) for number in rounds])


def matrices(log: dict[str, Any]) -> list[tuple[int, int] | None]:
    """Return rows and columns of every layer, None where it is no matrix."""
    shapes = [[int(size) for size in text.split("x")] for text in log["layers"]["shape"]]
    return [(shape[0], int(np.prod(shape[1:]))) if len(shape) > 1 else None for shape in shapes]


@of_all
def test_layers_messages_and_rounds_add_up(launch: tuple[int, Path], case: str):
    log = costlog.read(launch[1] / f"{case}.h5")
    rounds, layers = log["rounds"], len(log["layers"]["name"])
    for table in ("uplink", "downlink"):
        messages = log[table]
        assert (messages["bytes"] == messages["header_bytes"] + messages["layer_bytes"].sum(axis=1)).all()
        sent = messages["layer_bytes"].any(axis=1)
        overhead = (HEADER + TAG * layers * sent) if layers else 0
        assert (messages["header_bytes"] == overhead).all()
        for row in np.flatnonzero(sent):
            columns = zip(messages["layer_rank"][row], messages["layer_bytes"][row], strict=True)
            for (rank, size), shape, numel in zip(columns, matrices(log), log["layers"]["numel"], strict=True):
                assert case in CODECS or size == 4 * (rank * sum(shape) if rank >= 0 else numel)
    clients = 1 if case == "alone" else rounds["cohort_size"]
    assert (rounds["uplink_bytes"] == by_round(log, "uplink", log["uplink"]["bytes"])).all()
    assert (rounds["uplink_header_bytes"] == by_round(log, "uplink", log["uplink"]["header_bytes"])).all()
    assert (rounds["downlink_bytes"] == clients * log["downlink"]["bytes"]).all()
    assert (rounds["downlink_header_bytes"] == clients * log["downlink"]["header_bytes"]).all()
    # an uplink row for each of the cohort, sent by the process that hosts the client
    expected = 0 if case == "alone" else rounds["cohort_size"]
    assert (by_round(log, "uplink", np.ones_like(log["uplink"]["client"])) == expected).all()
    assert (log["uplink"]["mpi_rank"] == log["clients"]["mpi_rank"][log["uplink"]["client"]]).all()


@pytest.mark.parametrize("case", EVERY)
def test_dense_figures_are_those_of_the_formulas(simulated: Callable[..., Path], case: str):
    log = costlog.read(simulated("openmpi", 1, *CASES) / f"{case}.h5")
    rounds, numbers = log["rounds"], log["layers"]["numel"].sum()

    assert (rounds["student_dense_bytes"] == 2 * 4 * numbers * rounds["cohort_size"]).all()
    teachers = np.array(THREE if case == "mixed" else [TEACHER])
    own = by_round(log, "uplink", teachers[log["uplink"]["client"] % len(teachers)])
    if case == "alone":  # nothing is sent, but the teachers are there
        own = TEACHER * rounds["cohort_size"]
    assert (rounds["teacher_dense_bytes"] == 2 * 4 * own).all()


@pytest.mark.parametrize(("t_start", "t_end"), [(0.3, 0.6), (0.95, 0.999)])  # factors, and raw because shorter
def test_the_papers_count_is_that_of_the_smallest_ranks_above_the_threshold(t_start: float, t_end: float):
    settings = f"compression.t_start={t_start}", f"compression.t_end={t_end}"
    _, log = play("num_clients=3", "cohort_size=2", "rounds=3", "log.spectra=true", *settings)
    rounds = log["rounds"]

    def paper(spectrum: np.ndarray, threshold: float) -> int:
        numbers, at = 0, 0
        for numel, matrix in zip(log["layers"]["numel"], matrices(log), strict=True):
            if matrix is None:
                numbers += numel
                continue
            rows, columns = matrix
            energies = np.square(spectrum[at : at + min(rows, columns)].astype(np.float64))
            at += len(energies)
            rank = int((np.cumsum(energies) / energies.sum() <= threshold).sum()) + 1
            numbers += rows * rank + rank**2 + rank * columns
        return 4 * int(numbers)

    for index, threshold in enumerate(rounds["threshold"]):
        up = log["uplink"]["spectrum"][log["uplink"]["round"] == index]
        assert rounds["uplink_paper_bytes"][index] == sum(paper(row, threshold) for row in up)
        assert rounds["downlink_paper_bytes"][index] == 2 * paper(log["downlink"]["spectrum"][index], threshold)


def test_codecs_without_the_papers_rank_have_no_count_of_the_paper():
    for codec in ("none", "rdsvd", "topk"):
        _, log = play("num_clients=2", "rounds=1", f"compression.codec={codec}")
        assert not any("paper" in name for name in log["rounds"])


@of_all
def test_what_mpi_moved_is_what_the_messages_hold(launch: tuple[int, Path], case: str):
    ranks, folder = launch
    log = costlog.read(folder / f"{case}.h5")
    mpi, uplink, downlink = log["mpi"], log["uplink"], log["downlink"]["bytes"]
    if ranks == 1:
        assert not any(mpi[name].any() for name in mpi if "bytes" in name)
        return
    assert (mpi["payload_bytes_sent"][:, 1:].sum(axis=1) == log["rounds"]["uplink_bytes"]).all()
    for rank in range(1, ranks):
        own = by_round(log, "uplink", np.where(uplink["mpi_rank"] == rank, uplink["bytes"], 0))
        assert (mpi["payload_bytes_sent"][:, rank] == own).all()
        assert (mpi["payload_bytes_received"][:, rank] == downlink).all()
    assert (mpi["payload_bytes_received"][:, 0] == log["rounds"]["uplink_bytes"]).all()
    assert (mpi["payload_bytes_sent"][:, 0] == (ranks - 1) * downlink).all()
    if ranks == log["attrs"]["num_clients"] + 1 and case != "alone":
        assert (mpi["payload_bytes_received"][:, 1:].sum(axis=1) == log["rounds"]["downlink_bytes"]).all()
    assert (mpi["bytes_sent"].sum(axis=1) == mpi["bytes_received"].sum(axis=1)).all()
    for name in ("sent", "received"):
        assert (mpi[f"bytes_{name}"] > mpi[f"payload_bytes_{name}"]).any(axis=1).all()
        assert (mpi[f"bytes_{name}"] >= mpi[f"payload_bytes_{name}"]).all()


def test_a_skipped_client_sends_a_header_and_leaves_an_event(launch: tuple[int, Path]):
    log = costlog.read(launch[1] / "skipped.h5")
    uplink, events, training = log["uplink"], log["events"], log["training"]
    skipped = uplink["bytes"] == HEADER
    assert skipped.any()
    assert not skipped.all()
    (victim,) = set(uplink["client"][skipped])
    assert (skipped == (uplink["client"] == victim)).all()
    assert (uplink["layer_rank"][skipped] == -1).all()
    assert np.isnan(uplink["layer_energy"][skipped]).all()
    said = np.array(["not finite" in text for text in events["message"]])
    assert events["round"][said].tolist() == uplink["round"][skipped].tolist()
    assert set(events["client"][said]) == {victim}
    assert set(events["level"]) == {"warning"}
    assert all("not finite (layer teacher.layers.0.weight)" in text for text in np.array(events["message"])[said])
    assert all("logits are NaN" in text for text in np.array(events["message"])[~said])  # the test set has NaN too
    assert (log["rounds"]["skipped_clients"] == by_round(log, "uplink", skipped.astype(int))).all()
    assert (np.isnan(training["student_loss"]) == (training["client"] == victim)).all()


@pytest.mark.parametrize("case", EVERY)
def test_rounds_average_their_trainings(simulated: Callable[..., Path], case: str):
    log = costlog.read(simulated("openmpi", 1, *CASES) / f"{case}.h5")
    rounds, training = log["rounds"], log["training"]
    for name in ("student_loss", "teacher_loss", "student_accuracy", "teacher_accuracy"):
        for row, number in enumerate(rounds["round"]):
            values = training[name][training["round"] == number]
            mean = values[~np.isnan(values)].mean() if not np.isnan(values).all() else np.nan
            assert rounds[name][row] == pytest.approx(mean, rel=1e-12, nan_ok=True)
