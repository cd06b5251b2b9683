"""Logs that a stranger wrote or a disk damaged: one line or a harmless report, never a trace, a hang or a command."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import logs
import numpy as np
import pytest
import yaml
from mpirun import PATIENCE, clean_environment

from fedkd_mpi import costlog
from fedkd_mpi.costlog import schema
from fedkd_mpi.errors import UserError
from fedkd_mpi.report.__main__ import main
from fedkd_mpi.report.follow import follow

ESCAPES = "\x1b[31mred\x1b]0;title\x07"
NAMES = {
    "mathtext": "cost $x_1$",
    "half a formula": r"a $\frac{1}{ b",
    "escape sequences": ESCAPES,
    "lines": "a\nb\r\nc | d",
    "turned around": "a\u202eb",
    "a formula": '=HYPERLINK("x")',
    "plus": "+1",
    "an at": "@SUM(A1)",
    "long": "x" * 5000,
    "nothing": "",
    "underscore": "_private",
    "html": "<script>alert(1)</script>",
    "a path": "../../up",
    "markdown": "[a](b) *c* `d`",
    "japanese": "連合学習",
    "a number": 7,
    "null": None,
    "a list": [1, 2],
}


def write(
    path: Path, config: Any, *, clients: int = 2, rounds: int = 2, change: Callable[..., None] | None = None
) -> Path:
    """Write a log of this configuration, a mapping or a text, with the digest of that text."""
    text = config if isinstance(config, str) else yaml.safe_dump(config, allow_unicode=True)
    attrs = logs.ATTRS | {"config": text, "config_digest": hashlib.sha256(text.encode()).hexdigest()}
    held = {name: np.full(clients, 3) for name in ("train_samples", "test_samples", "mpi_rank")}
    writer = costlog.Writer.create(path, attrs, logs.LAYERS[:1], held, ["f1"], 2)
    for number in range(rounds):
        made = logs.make_round(number, cohort=min(2, clients), layers=1, world_size=2)
        for table in (made[1], made[4]):
            table["client"] = np.arange(min(2, clients))
        if change:
            change(*made)
        writer.append_round(*made)
    writer.finish("completed")
    return path


def not_a_number(rounds: dict, _up: dict, _down: dict, mpi: dict, training: dict) -> None:
    for values in (rounds, training, mpi):
        values |= {
            name: value * np.nan
            for name, value in values.items()
            if name.startswith(("seconds", "student_l", "teacher_l")) or name.endswith("f1")
        }


ODD = {name: {"config": {"name": odd, "rounds": 2, "compression": {"codec": odd}}} for name, odd in NAMES.items()} | {
    "no clients": {"config": {"name": "a"}, "clients": 0},
    "no rounds": {"config": {"name": "a"}, "rounds": 0},
    "neither": {"config": {"name": "a"}, "rounds": 0, "clients": 0},
    "one round": {"config": {"name": "a", "rounds": 1}, "rounds": 1},
    "no numbers": {"config": {"name": "a"}, "change": not_a_number},
    "null sections": {"config": {"name": None, "averaging": None, "compression": None, "rounds": None, "method": None}},
    "sections of another kind": {"config": {"name": "a", "averaging": 3, "compression": ["x"], "rounds": "many"}},
    "negative rounds": {"config": {"name": "a", "rounds": -3}},
    "an empty configuration": {"config": "{}\n"},
}  # fmt: skip


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_log_is_reported_and_nothing_in_it_acts(tmp_path: Path, capsys: pytest.CaptureFixture, odd: str):
    path = write(tmp_path / "odd.h5", **ODD[odd])
    outputs = [["--format", form] for form in ("table", "markdown", "latex", "csv", "json")]
    outputs[0] += ["--network", "home", "--energy", "--target", "0.5"]
    if odd in ("half a formula", "no clients", "neither", "no numbers", "underscore"):
        outputs[0] += ["--plot", str(tmp_path / "plots"), "--html", str(tmp_path / "page.html")]
    if odd in ("escape sequences", "lines"):  # no text that the reader of YAML takes
        assert main([str(path)]) == 2
        out, err = capsys.readouterr()
        assert (out, len(err.splitlines()), err[:-1].isprintable()) == ("", 1, True)
        return
    for arguments in outputs:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert main([str(path), *arguments]) == 0
        out, err = capsys.readouterr()
        assert (out + err).replace("\n", "").isprintable()
        if "csv" in arguments:
            table = list(csv.reader(io.StringIO(out)))
            assert len(table) == 2
            texts = [cell for row in table for cell in row if not cell.replace(".", "").replace("-", "").isdecimal()]
            assert not [
                text for text in texts if text.startswith(("=", "+", "@", "\t", "\r")) or (text[:1] == "-" and text[1:])
            ]
        if "json" in arguments:
            json.loads(out, parse_constant=lambda name: pytest.fail(name))
    lines: list[str] = []
    follow(path, say=lines.append)
    assert all(line.isprintable() for line in lines)
    assert not list(tmp_path.glob("../**/up-*"))


def test_markdown_and_html_are_text(tmp_path: Path, capsys: pytest.CaptureFixture):
    path = write(tmp_path / "a.h5", {"name": "a", "method": "<b>|x|[a](b)", "rounds": 2})
    assert main([str(path), "--format", "markdown", "--html", str(tmp_path / "page.html")]) == 0
    assert r" \<b\>\|x\|\[a\](b) |" in capsys.readouterr().out
    assert "<b>" not in (tmp_path / "page.html").read_text()


def test_a_changed_configuration_is_said_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture):
    path = write(tmp_path / "a.h5", {"name": "mine", "rounds": 2})
    with h5py.File(path, "r+") as file:
        file.attrs["config"] = file.attrs["config"].replace("mine", "better")
    assert main([str(path)]) == 0
    out, err = capsys.readouterr()
    assert "better" in out
    assert err == f"fedkd_mpi.report: {path}: its configuration was changed: config_digest is not that of the text\n"


def test_no_reader_imports_what_a_log_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "poison.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    path = write(
        tmp_path / "a.h5",
        {"name": "a", "task": "poison:Task", "data": {"name": "poison:load"}, "compression": {"codec": "poison:Codec"}},
    )
    for arguments in ([], ["--format", "json"], ["--network", "4g", "--energy"]):
        assert main([str(path), *arguments]) == 0
    costlog.read(path)
    assert "poison" not in sys.modules


def _retype(name: str, dtype: str) -> Callable[[h5py.File, Path], None]:
    def change(file: h5py.File, _: Path) -> None:
        values = np.zeros(file[name].shape, dtype)
        del file[name]
        file[name] = values

    return change


def _attribute(name: str, value: Any) -> Callable[[h5py.File, Path], None]:
    return lambda file, _: file.attrs.__setitem__(name, value)


def _dataset(name: str, **how: Any) -> Callable[[h5py.File, Path], None]:
    def change(file: h5py.File, _: Path) -> None:
        del file[name]
        file.create_dataset(name, **how)

    return change


def _link(name: str, link: Any) -> Callable[[h5py.File, Path], None]:
    def change(file: h5py.File, _: Path) -> None:
        file.move(name, "elsewhere")
        file[name] = link

    return change


def _value(name: str, at: Any, value: Any) -> Callable[[h5py.File, Path], None]:
    return lambda file, _: file[name].__setitem__(at, value)


def _virtual(file: h5py.File, folder: Path) -> None:
    with h5py.File(folder / "other.h5", "w") as other:
        other["x"] = np.arange(2)
    layout = h5py.VirtualLayout((2,), "int64")
    layout[:] = h5py.VirtualSource(str(folder / "other.h5"), "x", (2,))
    del file["clients/train_samples"]
    file.create_virtual_dataset("clients/train_samples", layout)


def _external(file: h5py.File, folder: Path) -> None:
    (folder / "secret").write_bytes(bytes(16))
    del file["clients/train_samples"]
    file.create_dataset("clients/train_samples", (2,), "int64", external=[(str(folder / "secret"), 0, 16)])


DAMAGED: dict[str, tuple[Callable[[h5py.File, Path], None], str]] = {
    "a missing column": (lambda file, _: file.__delitem__("rounds/threshold"), "rounds/threshold"),
    "a missing table": (lambda file, _: file.__delitem__("mpi"), "mpi"),
    "a renamed column": (lambda file, _: file.move("uplink/bytes", "uplink/byte"), "uplink/bytes"),
    "a table that is none": (_dataset("events", data=3), "events"),
    "floats for integers": (_retype("uplink/bytes", "f8"), "uplink/bytes"),
    "narrow integers": (_retype("uplink/bytes", "i4"), "uplink/bytes"),
    "unsigned integers": (_retype("uplink/bytes", "u8"), "uplink/bytes"),
    "complex numbers": (_retype("rounds/threshold", "c16"), "rounds/threshold"),
    "another width": (_dataset("uplink/layer_bytes", data=np.zeros((4, 7), "i8")), "uplink/layer_bytes"),
    "another dimension": (_dataset("uplink/bytes", data=np.zeros((4, 1), "i8")), "uplink/bytes"),
    "a scalar": (_dataset("uplink/bytes", data=np.int64(3)), "uplink/bytes"),
    "an empty dataset": (_dataset("uplink/bytes", data=h5py.Empty("i8")), "uplink/bytes"),
    "too few rows": (_dataset("uplink/bytes", data=np.zeros(1, "i8")), "uplink/bytes"),
    "too few clients": (_dataset("clients/test_samples", data=np.zeros(1, "i8")), "clients/test_samples"),
    "a billion rows": (
        _dataset("rounds/round", shape=(10**9,), maxshape=(None,), chunks=(512,), dtype="i8", fillvalue=0),
        "rounds/round",
    ),
    "a billion layers": (
        _dataset("uplink/layer_rank", shape=(4, 10**9), chunks=(1, 8), dtype="i8"),
        "uplink/layer_rank",
    ),
    "a packed billion": (
        _dataset("uplink/layer_bytes", shape=(4, 10**9), chunks=(1, 10**6), dtype="i8", compression="gzip"),
        "uplink/layer_bytes",
    ),
    "unknown packing": (
        _dataset("uplink/bytes", data=np.zeros(4, "i8"), chunks=(4,), compression="lzf"),
        "uplink/bytes",
    ),
    "texts of any length": (_dataset("layers/name", data=["a"], dtype=h5py.string_dtype()), "layers/name"),
    "references": (_dataset("uplink/bytes", shape=(4,), dtype=h5py.ref_dtype), "uplink/bytes"),
    "a soft link": (_link("uplink/bytes", h5py.SoftLink("/elsewhere")), "uplink/bytes"),
    "a dangling link": (_link("uplink/bytes", h5py.SoftLink("/nowhere")), "uplink/bytes"),
    "a linked table": (_link("uplink", h5py.SoftLink("/elsewhere")), "uplink"),
    "an external link": (_link("uplink/bytes", h5py.ExternalLink("/etc/passwd", "/x")), "uplink/bytes"),
    "a circle": (_link("uplink", h5py.SoftLink("/")), "uplink"),
    "a virtual dataset": (_virtual, "clients/train_samples"),
    "an external file": (_external, "clients/train_samples"),
    "no UTF-8": (_dataset("layers/name", data=np.array([b"\xff\xfe"])), "layers/name"),
    "no UTF-8 in the configuration": (_attribute("config", np.bytes_(b"\xff\xfe")), "config"),
    "a shape that is none": (_value("layers/shape", 0, b"4x-3"), "layers/shape"),
    "another number of numbers": (_value("layers/numel", 0, 5), "layers/numel"),
    "a client that is none": (_value("uplink/client", 0, 99), "uplink/client"),
    "a negative client": (_value("training/client", 0, -1), "training/client"),
    "bytes below zero": (_value("rounds/teacher_dense_bytes", 0, -5), "rounds/teacher_dense_bytes"),
    "bytes beyond count": (_value("rounds/student_dense_bytes", 0, 2**62), "rounds/student_dense_bytes"),
    "sums that do not agree": (_value("rounds/uplink_bytes", 0, 12), "rounds/uplink_bytes"),
    "parts that do not agree": (_value("uplink/bytes", 0, 12), "uplink/bytes"),
    "rounds out of turn": (_value("rounds/round", 1, 5), "rounds"),
    "an update of no round": (_value("uplink/round", 0, 1), "uplink/round"),
    "negative clients": (_attribute("num_clients", -3), "num_clients"),
    "more clients than there are": (
        _attribute("num_clients", 10**12),
        "clients/train_samples has 2 rows, not 1000000000000",
    ),
    "processes beyond count": (_attribute("world_size", 2**40), "world_size"),
    "a text for a number": (_attribute("seed", "one"), "seed"),
    "a number for a text": (_attribute("config", 3), "config"),
    "an unknown status": (_attribute("status", "rumning"), "status"),
    "metrics that are a path": (_attribute("metrics", ["../uplink/x"]), "metrics"),
    "metrics given twice": (_attribute("metrics", ["f1", "f1"]), "metrics"),
    "a reference for a text": (lambda file, _: file.attrs.__setitem__("started", file["rounds"].ref), "started"),
    "no attribute": (lambda file, _: file.attrs.__delitem__("hostnames"), "hostnames"),
    "escape sequences": (_attribute("status", ESCAPES), "status"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_what_does_not_fit_the_schema_is_refused_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture, damage: str):
    change, place = DAMAGED[damage]
    path = write(tmp_path / "x.h5", {"name": "a", "rounds": 2})
    with h5py.File(path, "r+") as file:
        change(file, tmp_path)
    with pytest.raises(UserError) as refusal:
        costlog.read(path)
    text = str(refusal.value)
    assert text.startswith(f"{path} ")
    assert place in text
    assert text.isprintable()
    assert main([str(path)]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"fedkd_mpi.report: {text}\n")


def test_every_column_is_checked(tmp_path: Path):
    for table, columns in (schema.FIXED | schema.growing(["f1"])).items():
        for name in columns:
            if (table, name) in schema.OPTIONAL:
                continue
            path = write(tmp_path / "x.h5", {"name": "a"}) if not (tmp_path / "x.h5").exists() else tmp_path / "x.h5"
            with h5py.File(path, "r+") as file:
                file.move(f"{table}/{name}", "kept")
                file[f"{table}/{name}"] = h5py.SoftLink("/kept")
            with pytest.raises(UserError, match=f"{table}/{name} is missing"):
                costlog.read(path)
            with h5py.File(path, "r+") as file:
                del file[f"{table}/{name}"]
                file.move("kept", f"{table}/{name}")


def test_damaged_copies_are_refused_or_read_and_nothing_else(tmp_path: Path):
    import os

    writer = logs.create(tmp_path / "closed.h5")
    for number in range(3):
        writer.event(number, None, "info", "event")
        writer.append_round(*logs.make_round(number))
    writer.close()
    (tmp_path / "killed.h5").write_bytes((tmp_path / "closed.h5").read_bytes())
    costlog.mark(tmp_path / "closed.h5", "completed")
    with h5py.File(tmp_path / "closed.h5") as old, h5py.File(tmp_path / "packed.h5", "w") as new:
        new.attrs.update(old.attrs)
        for table in schema.ROWS:
            for name, dataset in old[table].items():
                new.create_dataset(f"{table}/{name}", data=dataset[()], dtype=dataset.dtype, compression="gzip")
    count = 120 * int(os.environ.get("FEDKD_SEARCH", "1"))
    program = [
        sys.executable,
        Path(__file__).parents[1] / "helpers" / "worker_damaged_logs.py",
        tmp_path,
        "0",
        str(count),
    ]
    ended = subprocess.run(program, capture_output=True, text=True, timeout=PATIENCE + count, env=clean_environment())
    assert (ended.returncode, ended.stderr) == (0, ""), ended.stdout[-300:]
    lines = ended.stdout.splitlines()
    assert len(lines) == count
    assert {line.split(" ", 2)[2] for line in lines} <= {"refused", "read 0", "read 2"}
    assert sum(line.endswith("refused") for line in lines) > count // 10
