"""The cost log: what is written is read, whatever kills the writer, fills the disk or damages the file."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import logs
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loaded_modules import loaded_after
from mpirun import PATIENCE

from fedkd_mpi import costlog
from fedkd_mpi.costlog import schema
from fedkd_mpi.errors import RunFault, UserError

ROOT = Path(__file__).parents[2]


def child(*arguments: object, **more) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "tests" / "helpers" / "logs.py"), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)


def kill_after(process: subprocess.Popen, seconds: float) -> int:
    """Kill a writer some time after its first round; return the number of the last round that it reported."""
    reported = [process.stdout.readline()]
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    return int((reported + process.communicate(timeout=PATIENCE)[0].splitlines())[-1])


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def assert_same(log: dict, expected: dict) -> None:
    for table, columns in expected.items():
        assert log[table].keys() == columns.keys()
        for name, values in columns.items():
            np.testing.assert_array_equal(log[table][name], values, err_msg=f"{table}/{name}")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "x.h5"


@pytest.fixture
def three_rounds(path: Path) -> Path:
    """A finished log of rounds 0 to 2."""
    with logs.create(path) as writer:
        for number in range(3):
            writer.append_round(*logs.make_round(number))
        writer.event(1, 3, "warning", "update skipped")
        writer.finish("completed")
    return path


@pytest.fixture
def killed(path: Path) -> Path:
    """A log of three rounds or more whose writer was killed."""
    process = child(path, 0, 10**6)
    for _ in range(3):
        process.stdout.readline()
    kill_after(process, 0)
    return path


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    first=st.integers(0, 3),
    cohorts=st.lists(st.integers(0, 4), min_size=1, max_size=4),
    layers=st.integers(1, 3),
    world_size=st.integers(1, 3),
    metrics=st.sampled_from([("f1",), ("accuracy", "f1"), ()]),
    messages=st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60), max_size=3
    ),
)
def test_what_is_appended_is_read_back(tmp_path, first, cohorts, layers, world_size, metrics, messages):
    shape = {"layers": layers, "world_size": world_size, "metrics": metrics}
    with logs.create(tmp_path / "x.h5", overwrite=True, **shape) as writer:
        made = [logs.make_round(first + i, cohort=size, **shape) for i, size in enumerate(cohorts)]
        for parts in made:
            writer.append_round(*parts)
        for message in messages:
            writer.event(first, None, "info", message)
        assert writer.rounds_completed == len(cohorts)
        while_running = costlog.read(tmp_path / "x.h5")
        writer.finish("completed")
    log = costlog.read(tmp_path / "x.h5")
    assert while_running["attrs"]["status"] == "running"
    for table in ("layers", "clients", *schema.GROWING):
        assert_same(while_running, {table: log[table]})
    for i, parts in enumerate(made):
        for table, given_columns in zip(("rounds", "uplink", "downlink", "mpi", "training"), parts, strict=True):
            of_client = table in ("uplink", "training")
            rows = log[table]["round"] == first + i if of_client else i
            for name, values in given_columns.items():
                np.testing.assert_array_equal(log[table][name][rows], values, err_msg=f"{table}/{name}")
    assert log["events"]["message"].tolist() == [message.rstrip("\0") for message in messages]


def test_the_file_describes_itself_to_h5py_alone(three_rounds):
    with h5py.File(three_rounds) as file:
        assert set(file.attrs) == set(schema.ATTRS)
        assert file.attrs["schema_version"] == 4
        assert list(file.attrs["hostnames"]) == ["node1", "nöde2"]
        columns = {}
        file.visititems(lambda name, item: columns.update({name: item} if isinstance(item, h5py.Dataset) else {}))
        declared = {**schema.FIXED, **schema.growing(["f1"])}
        named = {f"{table}/{name}" for table, names in declared.items() for name in names}
        dimensions = {*schema.ROWS.values(), "layer", "mpi_rank", "class"}
        others = {f"{table}/{name}" for table, name in schema.ENCRYPTION | schema.DIFFERENTIAL if table != "starts"}
        assert set(columns) == named - {"uplink/spectrum", "downlink/spectrum"} - others | dimensions
        for name in dimensions:
            assert columns.pop(name).is_scale, name
        for name, dataset in columns.items():
            assert dataset.attrs["unit"], name
            assert dataset.attrs["description"], name
            assert h5py.check_vlen_dtype(dataset.dtype) is None, name
            if dataset.attrs["unit"] == "bytes":
                assert dataset.dtype == np.int64, name
            if dataset.attrs["unit"] == "seconds":
                assert dataset.dtype == np.float64, name
        assert [name.decode() for name in file["layers/shape"]] == ["4x3x3x3", "4", "scalar"]
        assert file["layers/numel"][:].tolist() == [108, 4, 1]
        assert file["rounds/global_student_f1"].shape == (3,)


def test_the_log_refuses_sums_that_do_not_agree(path):
    with logs.create(path) as writer:
        for table, column, name in ((0, "uplink_bytes", "rounds/uplink_bytes"), (2, "bytes", "downlink/bytes")):
            parts = logs.make_round(0)
            parts[table][column] = parts[table][column] + 1
            with pytest.raises(RunFault, match=f"round 1 .*{name}: not the sum"):
                writer.append_round(*parts)
        writer.append_round(*logs.make_round(0))
    assert_same(costlog.read(path), logs.expect(range(1)))


@pytest.mark.parametrize(
    ("table", "change", "message"),
    [
        (0, {"threshhold": 1.0}, "rounds: unknown threshhold"),
        (1, {"client": None}, "uplink: missing client"),
        (1, {"round": np.zeros(3, int)}, "uplink: unknown round"),
        (3, {"bytes_sent": np.zeros(2, int)}, r"mpi/bytes_sent is int64 \[1, 3\], not int64 \[1, 2\]"),
        (3, {"bytes_sent": np.zeros(3)}, "mpi/bytes_sent is int64 .* not float64"),
        (0, {"round": 7}, "round 7 in .*x.h5, but round 1 is next"),
    ],
)
def test_a_wrong_call_says_what_is_wrong_with_it(path, table, change, message):
    with logs.create(path) as writer:
        writer.append_round(*logs.make_round(0))
        parts = logs.make_round(1)
        parts[table].update(change)
        for name in [name for name, value in parts[table].items() if value is None]:
            del parts[table][name]
        with pytest.raises(ValueError, match=message):
            writer.append_round(*parts)
        writer.append_round(*logs.make_round(1))
    assert_same(costlog.read(path), logs.expect(range(2)))


def test_events_are_there_at_once_and_cut_at_a_whole_character(path):
    with logs.create(path) as writer:
        writer.event(0, 2, "warning", "é" * 200)
        writer.event(0, None, "error", "a\0b")
        events = costlog.read(path)["events"]
        with pytest.raises(ValueError, match="info, warning, error"):
            writer.event(0, None, "fatal", "")
    assert events["message"].tolist() == ["é" * 120, "a b"]
    assert events["client"].tolist() == [2, -1]
    assert events["level"].tolist() == ["warning", "error"]


def test_the_status_tells_how_the_run_ended(path):
    def fail() -> None:
        with logs.create(path) as writer:
            writer.append_round(*logs.make_round(0))
            assert costlog.read(path)["attrs"]["status"] == "running"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert costlog.read(path)["attrs"]["status"] == "interrupted"
    writer = costlog.Writer.resume(path, 1)
    assert costlog.read(path)["attrs"]["status"] == "running"
    writer.finish("completed")
    writer.finish("interrupted")
    assert costlog.read(path)["attrs"]["status"] == "completed"
    with pytest.raises(RunFault, match="is closed"):
        writer.append_round(*logs.make_round(1))


def test_a_status_that_cannot_be_written_leaves_the_rounds(path, monkeypatch):
    writer = logs.create(path)
    writer.append_round(*logs.make_round(0))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFault, match=r"cannot mark the log .*x\.h5 as completed: No space left on device"):
        writer.finish("completed")
    log = costlog.read(path)
    assert log["attrs"]["status"] == "running"
    assert_same(log, logs.expect(range(1)))
    assert names(path.parent) == ["x.h5"]


def test_an_existing_log_is_replaced_only_on_demand(three_rounds):
    before = three_rounds.read_bytes()
    with pytest.raises(UserError, match=r"x\.h5 exists: .*--overwrite"):
        logs.create(three_rounds)
    assert three_rounds.read_bytes() == before
    logs.create(three_rounds, overwrite=True).close()
    assert costlog.read(three_rounds)["rounds"]["round"].size == 0


def test_a_place_that_cannot_be_written_is_refused_in_a_line(tmp_path):
    (tmp_path / "file").write_text("")
    places = [tmp_path / "file" / "x.h5", Path("/proc/fedkd/x.h5"), tmp_path]
    if os.geteuid() != 0:  # root may write everywhere
        (tmp_path / "locked").mkdir(mode=0o500)
        places.append(tmp_path / "locked" / "x.h5")
    for place in places:
        with pytest.raises(UserError, match=f"^cannot write the log {place}: .*") as caught:
            costlog.check_output(place, overwrite=True)
        assert "\n" not in str(caught.value)


def test_locks_of_others_are_no_obstacle(path):
    writer = logs.create(path)
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        writer.append_round(*logs.make_round(0))
        assert costlog.read(path)["rounds"]["round"].tolist() == [0]
        writer.finish("completed")


def test_another_process_reads_while_the_run_goes_on(path):
    process = child(path, 0, 10**6)
    process.stdout.readline()
    try:
        seen = []
        while len(set(seen)) < 4:
            log = costlog.read(path)
            seen.append(len(log["rounds"]["round"]))
            assert log["attrs"]["status"] == "running"
            assert_same(log, logs.expect(range(seen[-1])))
        assert seen == sorted(seen)
        with h5py.File(path, "r", swmr=True) as file:
            count = file["rounds/round"].shape[0]
            assert count >= seen[-1]
            process.stdout.readline()
            deadline = time.monotonic() + 30
            while file["rounds/round"].shape[0] == count and time.monotonic() < deadline:
                file["rounds/round"].refresh()
            assert file["rounds/round"].shape[0] > count
    finally:
        process.kill()
        process.communicate(timeout=PATIENCE)


def test_killed_at_any_moment_the_log_keeps_every_completed_round_and_goes_on(path):
    rng = np.random.default_rng(20)
    first = 0
    for _ in range(10):
        last = kill_after(child(path, first, 10**6), rng.random() * 0.1)
        log = costlog.read(path)
        done = len(log["rounds"]["round"])
        assert done in (last + 1, last + 2), "reported, or completed and killed before it could report"
        assert_same(log, logs.expect(range(done)))
        assert len(log["events"]["round"]) in (done, done + 1)
        first = int(rng.integers(1, done + 1))
    with costlog.Writer.resume(path, first) as writer:
        for number in range(first, first + 2):
            writer.event(number, None, "info", f"event of round {number}")
            writer.append_round(*logs.make_round(number))
        writer.finish("completed")
    log = costlog.read(path)
    assert_same(log, logs.expect(range(first + 2)))
    assert log["events"]["message"].tolist() == [f"event of round {number}" for number in range(first + 2)]
    assert names(path.parent) == ["x.h5"]


def test_resumed_on_other_processes_the_mpi_table_keeps_its_sums(three_rounds):
    with costlog.Writer.resume(three_rounds, 2, world_size=5, attrs={"hostnames": list("abcde")}) as writer:
        writer.append_round(*logs.make_round(2, world_size=5))
    with costlog.Writer.resume(three_rounds, 3, world_size=1) as writer:
        writer.append_round(*logs.make_round(3, world_size=1))
    log = costlog.read(three_rounds)
    assert (log["attrs"]["world_size"], log["attrs"]["hostnames"]) == (1, list("abcde"))
    given_sums = [logs.make_round(number, world_size=size)[3] for number, size in enumerate((3, 3, 5, 1))]
    assert log["mpi"]["bytes_sent"].shape == (4, 5)
    assert log["mpi"]["bytes_sent"].sum(axis=1).tolist() == [mpi["bytes_sent"].sum() for mpi in given_sums]
    assert np.isnan(log["mpi"]["seconds_wait"]).sum(axis=1).tolist() == [2, 2, 0, 4]
    np.testing.assert_array_equal(log["uplink"]["round"], np.repeat(range(4), 3))


def test_resuming_drops_the_events_of_the_rounds_it_repeats(three_rounds):
    costlog.Writer.resume(three_rounds, 1).close()
    assert costlog.read(three_rounds)["events"]["round"].size == 0
    with pytest.raises(UserError, match=r"x\.h5 contains 1 completed rounds, not 2"):
        costlog.Writer.resume(three_rounds, 2)


def test_a_full_disk_ends_the_run_in_a_line_and_keeps_the_rounds(path):
    resource = pytest.importorskip("resource")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (640_000, 640_000))

    out, errors = child(path, 0, 10**6, preexec_fn=limit).communicate(timeout=PATIENCE)
    assert_full(path, out, errors, "File too large")


def test_a_full_file_system_ends_the_run_in_a_line_and_keeps_the_rounds(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    if (
        not mount
        or subprocess.run([mount, "-t", "tmpfs", "-o", "size=640k", "tmpfs", disk], capture_output=True).returncode
    ):
        pytest.skip("mounting a small tmpfs is not allowed here")
    try:
        process = child(disk / "x.h5", 0, 10**6)
        out, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 1
        assert_full(disk / "x.h5", out, errors, "No space left on device")
        (disk / "filling").write_bytes(b"")
        with pytest.raises(UserError, match=r"cannot write the log .*y\.h5: No space left on device"):
            logs.create(disk / "y.h5")
        assert names(disk) == ["filling", "x.h5"]
    finally:
        subprocess.run(["umount", disk], check=True)


def assert_full(path: Path, out: str, errors: str, reason: str) -> None:
    *rounds, fault = out.splitlines()
    number = len(rounds)
    assert (
        fault == (f"cannot write an event to the log {path}: {reason}; the {number} earlier rounds are safe")
        or fault == f"cannot write round {number + 1} to the log {path}: {reason}; the {number} earlier rounds are safe"
    )
    assert errors == ""  # HDF5 left alone with a full disk prints pages and crashes at exit
    assert number > 10
    assert_same(costlog.read(path), logs.expect(range(number)))


def test_a_file_that_is_no_log_is_refused_in_a_line(tmp_path, three_rounds):
    (tmp_path / "text.h5").write_text("round,bytes\n0,1\n")
    (tmp_path / "empty.h5").write_bytes(b"")
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["x"] = 1
    with h5py.File(three_rounds, "r+") as file:
        file.attrs["schema_version"] = 1
    refused = {
        tmp_path / "none.h5": "cannot read the log .*: No such file or directory",
        tmp_path: "cannot read the log .*: Is a directory",
        tmp_path / "text.h5": "is not an HDF5 file",
        tmp_path / "empty.h5": "is not an HDF5 file",
        tmp_path / "foreign.h5": "is not a cost log of fedkd_mpi: it has no schema_version",
        three_rounds: "has schema_version 1, but this fedkd_mpi reads 2, 3 and 4",
    }
    for place, message in refused.items():
        with pytest.raises(UserError, match=message) as caught:
            costlog.read(place)
        assert str(place) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_finished_log_that_is_damaged_is_refused_in_a_line(three_rounds):
    whole = three_rounds.read_bytes()
    for size in range(100, len(whole), len(whole) // 9):
        three_rounds.write_bytes(whole[:size])
        with pytest.raises(UserError, match=f"cannot read the log {three_rounds}: .*truncated file"):
            costlog.read(three_rounds)
    three_rounds.write_bytes(whole)
    with h5py.File(three_rounds, "r+") as file:
        del file["uplink/layer_rank"]
    with pytest.raises(UserError, match="is damaged: uplink/layer_rank is missing"):
        costlog.read(three_rounds)


def test_a_damaged_copy_of_an_unfinished_log_is_refused_and_not_waited_for(killed):
    whole = killed.read_bytes()
    headers = [found.start() for found in re.finditer(b"OHDR", whole)]
    for place in headers[:: len(headers) // 8]:
        killed.write_bytes(whole[: place + 20] + b"?" + whole[place + 21 :])
        with pytest.raises(UserError, match=f"{killed} is damaged"):
            costlog.read(killed)
    killed.write_bytes(whole[:5000])
    with pytest.raises(UserError, match=f"{killed} is damaged"):
        costlog.read(killed)


def test_a_repacked_log_reads_the_same(three_rounds, tmp_path):
    with h5py.File(three_rounds) as old, h5py.File(tmp_path / "old format.h5", "w") as new:
        new.attrs.update(old.attrs)
        for table in schema.ROWS:
            for name, dataset in old[table].items():
                new.create_dataset(f"{table}/{name}", data=dataset[()], dtype=dataset.dtype)
    old, new = costlog.read(three_rounds), costlog.read(tmp_path / "old format.h5")
    assert new.pop("attrs") == old.pop("attrs")
    assert_same(new, old)


def test_a_log_is_read_a_column_at_a_time(three_rounds):
    with costlog.open(three_rounds) as log:
        assert log.rounds_completed == 3
        assert list(log) == [*schema.FIXED, *schema.GROWING]
        assert log["layers"]["name"].tolist() == ["conv.weight", "conv.bias", "norm.count"]
        with pytest.raises(KeyError, match="no column byte: this table has round, client"):
            log["uplink"]["byte"]
    with costlog.open(three_rounds, rounds=2) as log:
        np.testing.assert_array_equal(log["uplink"]["bytes"], logs.expect(range(2))["uplink"]["bytes"])


def test_frames_hold_the_same_numbers(three_rounds):
    pytest.importorskip("pandas")
    log, frames = costlog.read(three_rounds), costlog.frames(three_rounds)
    by_round = frames["uplink"].groupby("round")["bytes"].sum()
    assert by_round.tolist() == log["rounds"]["uplink_bytes"].tolist()
    layers = frames["uplink_layers"].groupby(["round", "client"])["layer_bytes"].sum().reset_index()
    merged = frames["uplink"].merge(layers, on=["round", "client"])
    assert (merged["layer_bytes"] + merged["header_bytes"] == merged["bytes"]).all()
    assert len(merged) == 9
    sent = frames["mpi"].pivot(index="round", columns="mpi_rank", values="bytes_sent")
    np.testing.assert_array_equal(sent, log["mpi"]["bytes_sent"])
    histogram = frames["label_histogram"].pivot(index="client", columns="class", values="label_histogram")
    np.testing.assert_array_equal(histogram, log["clients"]["label_histogram"])
    assert frames["downlink_layers"]["layer"].tolist() == log["layers"]["name"].tolist() * 3


def test_frames_without_pandas_name_the_extra(three_rounds, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match=r"fedkd-mpi\[report\]"):
        costlog.frames(three_rounds)


def test_logs_are_read_without_mpi_torch_or_pandas(three_rounds):
    modules = loaded_after(f"from fedkd_mpi import costlog; costlog.read({str(three_rounds)!r})")
    assert modules.isdisjoint({"mpi4py", "torch", "pandas", "sklearn", "pydantic"})


def test_the_manual_names_every_column_with_its_unit_and_meaning():
    page = (ROOT / "docs" / "hdf5.md").read_text(encoding="utf-8")
    scores = {
        table: set(columns) - set(schema.GROWING[table]) for table, columns in schema.growing(["<metric>"]).items()
    }
    assert scores["rounds"]
    for table, columns in (schema.FIXED | schema.growing(["<metric>"])).items():
        for name, column in columns.items():
            axis = f" [{column.axis}]" if column.axis else ""
            line = f"| `{table}/{name}`{axis} | {column.unit} | {column.description} |"
            assert line in page, f"docs/hdf5.md lacks: {line}"
    for name, description in schema.ATTRS.items():
        assert f"| `{name}` | {description} |" in page


def test_xarray_reads_each_table_with_named_dimensions(three_rounds):
    pytest.importorskip("h5netcdf")
    xarray = pytest.importorskip("xarray")
    log = costlog.read(three_rounds)
    for table, row in schema.ROWS.items():
        with xarray.open_dataset(three_rounds, group=table, engine="h5netcdf") as dataset:
            assert set(dataset.variables) == set(log[table])
            for name, values in log[table].items():
                axis = (schema.FIXED | schema.growing(["f1"]))[table][name].axis
                assert dataset[name].dims == ((row, axis) if axis else (row,))
                found = dataset[name].values
                found = np.char.decode(found, "utf-8") if values.dtype.kind == "U" else found
                np.testing.assert_array_equal(found, values, err_msg=f"{table}/{name}")


def test_logs_are_put_together_by_run(three_rounds, tmp_path):
    pandas = pytest.importorskip("pandas")
    other = tmp_path / "other" / "x.h5"
    with logs.create(other, metrics=("accuracy",)) as writer:
        writer.append_round(*logs.make_round(0, metrics=("accuracy",)))
    copy = shutil.copy(three_rounds, tmp_path / "y.h5")
    both = costlog.concat([three_rounds, other, copy])
    names = [str(three_rounds), str(other), "y"]
    assert all(frame.columns[0] == "run" for frame in both.values())
    assert both["rounds"]["run"].tolist() == [names[0]] * 3 + [names[1]] + [names[2]] * 3
    pandas.testing.assert_frame_equal(
        both["uplink"].loc[lambda rows: rows["run"] == "y"].reset_index(drop=True), costlog.frames(copy)["uplink"]
    )
    assert both["rounds"]["student_accuracy"].isna().tolist() == [True] * 3 + [False] + [True] * 3
    assert both["attrs"]["run"].tolist() == names
    assert both["attrs"]["name"].tolist() == ["made-up"] * 3, "a key of the configuration"
    assert both["attrs"]["metrics"].tolist() == [["f1"], ["accuracy"], ["f1"]]
    assert both["starts"]["first_round"].tolist() == [0, 0, 0]
