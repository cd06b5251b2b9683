"""--diff against two logs read by h5py alone, and against logs of which one bit was changed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from made_logs import a_round, write
from mpirun import PATIENCE, clean_environment
from worker_simulation import SMALL

from fedkd_mpi.report import divergence
from fedkd_mpi.report.__main__ import main
from fedkd_mpi.report.runs import Run, Target
from fedkd_mpi.run import main as run_main

BASE = [*SMALL, "rounds=4", "num_clients=5", "cohort_size=3", "seed=7"]
RUNS = {
    "first": [],
    "again": [],
    "seed": ["seed=8"],
    "later": ["compression.t_end=0.99"],
    "short": ["rounds=3"],
    "other": ["student.hidden=[12,16]"],
    "raw": ["compression.codec=none"],
    "alone": ["method=local"],
}
TABLES = ("rounds", "training", "uplink", "downlink")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder with the logs of RUNS and of the same run with two threads."""
    path, hook = tmp_path_factory.mktemp("runs"), sys.excepthook  # which the command replaces
    for name, changed in RUNS.items():
        assert run_main(["--output", str(path / f"{name}.h5"), *BASE, *changed]) == 0
    sys.excepthook = hook
    return path


def diff(capsys: pytest.CaptureFixture, a: Path, b: Path) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["--diff", str(a), str(b), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def expected(a: Path, b: Path) -> dict[str, tuple[int, int]]:
    """Return the first round (from 1) and the number of values that differ, by column, for logs with equal shapes."""
    found = {}
    with h5py.File(a) as left, h5py.File(b) as right:
        for table in TABLES:
            for name in left[table]:
                if name in ("round", "client", "mpi_rank") or name.startswith("seconds_"):
                    continue
                of_row: dict[int, int] = {}
                for row, (x, y) in enumerate(zip(left[table][name], right[table][name], strict=True)):
                    size, x, y = x.dtype.itemsize, x.tobytes(), y.tobytes()
                    cells = range(0, len(x), size)
                    count = sum(x[at : at + size] != y[at : at + size] for at in cells)
                    of_round = int(left[table]["round"][row]) + 1
                    of_row[of_round] = of_row.get(of_round, 0) + count
                if any(of_row.values()):
                    found[f"{table}/{name}"] = (
                        min(number for number, count in of_row.items() if count),
                        sum(of_row.values()),
                    )
    return found


def test_a_run_that_is_repeated_is_equal_in_all_columns_but_times(folder, capsys):
    found = diff(capsys, folder / "first.h5", folder / "again.h5")
    assert expected(folder / "first.h5", folder / "again.h5") == {}
    assert (found["equal_but_times"], found["first"], found["columns"], found["rounds_compared"]) == (True, None, [], 4)
    assert (found["configuration"], found["data"]) == ([], [])
    assert {change["key"].rpartition(".")[2] for change in found["provenance"]} <= {"started", "ended"}
    assert main(["--diff", str(folder / "first.h5"), str(folder / "again.h5")]) == 0
    assert "equal in all columns but times and placement, 4 rounds" in capsys.readouterr().out


def test_a_changed_key_is_named_with_the_columns_and_rounds_that_it_changes(folder, capsys):
    pair = folder / "first.h5", folder / "later.h5"
    found = diff(capsys, *pair)
    assert found["configuration"] == [{"key": "compression.t_end", "a": 0.98, "b": 0.99}]
    assert found["data"] == []
    columns = {entry["column"]: (entry["round"], entry["differing"]) for entry in found["columns"]}
    assert columns == expected(*pair)
    assert found["first"]["round"] == min(number for number, _ in columns.values())
    rounds = [entry["round"] for entry in found["columns"]]
    assert rounds == sorted(rounds)


def test_another_seed_differs_in_configuration_and_data_and_its_clients_are_paired(folder, capsys):
    found = diff(capsys, folder / "first.h5", folder / "seed.h5")
    documented = (Path(__file__).parents[2] / "docs" / "reference.md").read_text(encoding="utf-8")
    (row,) = (line for line in documented.splitlines() if line.startswith("| `fedkd report --diff"))
    for entry in (found, *(found[part][0] for part in ("configuration", "data", "layers", "columns"))):
        assert set(entry) <= set(re.findall(r"`([^`]+)`", row))
    assert found["configuration"] == [{"key": "seed", "a": 7, "b": 8}]
    assert {change["key"] for change in found["provenance"]} >= {"seed"}
    with h5py.File(folder / "first.h5") as left, h5py.File(folder / "seed.h5") as right:
        samples = [file["clients/train_samples"][:] for file in (left, right)]
        cohorts = [
            set(zip(file["training/round"][:].tolist(), file["training/client"][:].tolist(), strict=True))
            for file in (left, right)
        ]
        losses = [
            {
                key: value.item()
                for key, value in zip(
                    zip(file["training/round"][:].tolist(), file["training/client"][:].tolist(), strict=True),
                    file["training/student_loss"][:],
                    strict=True,
                )
            }
            for file in (left, right)
        ]
    (entry,) = (change for change in found["data"] if change["column"] == "train_samples")
    first = int(np.flatnonzero(samples[0] != samples[1])[0])
    assert (entry["client"], entry["a"], entry["b"]) == (first, samples[0][first], samples[1][first])
    of_column = {entry["column"]: entry for entry in found["columns"]}
    number, client = min(cohorts[0] ^ cohorts[1])
    assert (of_column["training/client"]["round"], of_column["training/client"]["client"]) == (number + 1, client)
    number, client = min(cohorts[0] & cohorts[1])
    loss = of_column["training/student_loss"]
    assert (loss["round"], loss["client"]) == (number + 1, client)
    assert (loss["a"], loss["b"]) == (losses[0][number, client], losses[1][number, client])


def test_two_threads_are_named_and_the_bits_are_judged_by_the_logs_alone(folder, capsys):
    """Threads may or may not change the order of a sum: what the logs contain decides."""
    path = folder / "threads.h5"
    command = [sys.executable, "-m", "fedkd_mpi.run", "--output", str(path), *BASE, "threads_per_rank=2"]
    environment = clean_environment() | {"OPENBLAS_CORETYPE": "Sandybridge", "MKL_CBWR": "COMPATIBLE"}
    environment |= {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}
    subprocess.run(command, env=os.environ | environment, check=True, timeout=PATIENCE, capture_output=True)
    found = diff(capsys, folder / "first.h5", path)
    assert found["configuration"] == [{"key": "threads_per_rank", "a": 1, "b": 2}]
    truth = expected(folder / "first.h5", path)
    assert {entry["column"]: (entry["round"], entry["differing"]) for entry in found["columns"]} == truth
    assert found["equal_but_times"] == (not truth)


@pytest.mark.parametrize(
    ("name", "round_", "client", "layer"),
    [
        ("training/student_loss", 2, 1, None),
        ("training/teacher_accuracy", 1, 2, None),
        ("uplink/layer_energy", 3, 0, 1),
        ("uplink/layer_rank", 4, 2, 2),
        ("downlink/layer_energy", 2, None, 0),
        ("rounds/threshold", 1, None, None),
        ("rounds/global_student_accuracy", 4, None, None),
    ],
)
def test_one_changed_bit_is_named_with_its_round_client_layer_and_column(
    folder, tmp_path, capsys, name, round_, client, layer
):
    changed = tmp_path / "changed.h5"
    shutil.copy(folder / "first.h5", changed)
    table = name.split("/")[0]
    with h5py.File(changed, "r+") as file:
        rows = np.flatnonzero(file[f"{table}/round"][:] == round_ - 1)
        row = rows[client or 0]
        who = int(file[f"{table}/client"][row]) if client is not None else None
        of_layer = file["layers/name"][layer].decode() if layer is not None else None
        place = row if layer is None else (row, layer)
        value = file[name][place]
        file[name][place] = np.nextafter(value, 0) if value.dtype.kind == "f" else value + 1
    found = diff(capsys, folder / "first.h5", changed)
    (entry,) = found["columns"]
    assert (entry["column"], entry["round"], entry["differing"]) == (name, round_, 1)
    assert (entry["client"], entry["layer"]) == (who, of_layer)
    assert found["first"] == entry
    assert main(["--diff", str(folder / "first.h5"), str(changed)]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("Bits"))
    assert all(word in line for word in (f"round {round_}", name, *([f"layer {of_layer}"] if of_layer else [])))


def test_nan_equals_itself_and_a_changed_sign_of_zero_is_a_difference(tmp_path, capsys):
    one, other = (write(tmp_path / f"{n}.h5", [a_round(0, np.nan), a_round(1, 0.0)]) for n in "ab")
    assert diff(capsys, one, other)["equal_but_times"]
    with h5py.File(other, "r+") as file:
        file["rounds/global_student_accuracy"][1] = -0.0
    (entry,) = diff(capsys, one, other)["columns"]
    assert (entry["column"], entry["round"]) == ("rounds/global_student_accuracy", 2)


def test_bytes_by_layer_are_those_of_the_rounds_that_both_logs_have(folder, capsys):
    found = diff(capsys, folder / "first.h5", folder / "short.h5")
    assert found["equal_but_times"] is False  # the thresholds of a shorter run rise faster
    assert found["rounds_compared"] == 3
    for side, name in enumerate(("first", "short")):
        with h5py.File(folder / f"{name}.h5") as file:
            up = file["uplink/layer_bytes"][:][file["uplink/round"][:] < 3].sum(axis=0)
            headers = file["rounds/uplink_header_bytes"][:3].sum()
            assert up.sum() + headers == file["rounds/uplink_bytes"][:3].sum()
            down = file["rounds/downlink_bytes"][:3].sum() - file["rounds/downlink_header_bytes"][:3].sum()
        assert [layer["uplink_bytes"][side] for layer in found["layers"]] == up.tolist()
        assert sum(layer["downlink_bytes"][side] for layer in found["layers"]) == down


def test_other_networks_are_compared_where_they_have_the_same_layers(folder, capsys):
    found = diff(capsys, folder / "first.h5", folder / "other.h5")
    alone = {layer["layer"]: layer["uplink_bytes"] for layer in found["layers"] if None in layer["uplink_bytes"]}
    assert alone
    assert found["first"]["column"].startswith("training/")
    for pair in (("first", "other"), ("first", "raw"), ("first", "alone"), ("alone", "alone")):
        arguments = [str(folder / f"{name}.h5") for name in pair]
        for form in ("table", "markdown", "latex", "json"):
            assert main(["--diff", *arguments, "--format", form]) == 0
    capsys.readouterr()


def test_checksums_of_the_page_part_in_the_same_round(folder, capsys):
    first = Run(folder / "first.h5", Target())
    for name in RUNS:
        other = Run(folder / f"{name}.h5", Target())
        ours, theirs = divergence.fingerprints(first), divergence.fingerprints(other)
        differing = [
            number
            for stage in divergence.STAGES
            for number, pair in enumerate(zip(ours[stage], theirs[stage], strict=False), 1)
            if pair[0] != pair[1]
        ]
        partings = divergence.compare(first, other)
        assert min(differing, default=None) == (partings[0].round if partings else None)


@pytest.mark.parametrize("count", [1, 3])
def test_any_other_number_of_logs_is_refused_in_one_line(folder, capsys, count):
    assert main(["--diff", *[str(folder / "first.h5")] * count]) == 2
    assert capsys.readouterr().err == f"fedkd_mpi.report: --diff compares two logs, not {count}: name two logs\n"
    assert main(["--diff", *[str(folder / "first.h5")] * 2, "--format", "csv"]) == 2
    assert main(["--diff", str(folder / "first.h5"), str(folder / "missing.h5")]) == 2
