"""report --privacy: costs of a protocol beside a log's bytes, and refusals of codecs whose messages do not add up."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import golden_logs
import h5py
import pytest
from command import Command
from made_logs import a_round, write

from fedkd_mpi import costlog
from fedkd_mpi.config.codecs import CODECS
from fedkd_mpi.errors import UserError
from fedkd_mpi.report import events, page_data, secure
from fedkd_mpi.report.__main__ import main
from fedkd_mpi.report.runs import Run, Target

NUMBERS, CLIENTS, ROUNDS = 32, 2, 3  # one layer, 8 x 4
UP = 53 + 4 * NUMBERS  # a dense message of made_logs
KEYS = 32 * (2 + 2 + 2), 32 * (2 + 2)  # two clients: up 2 keys, 2 shares, 2 shares at the end; down 2 keys, 2 shares
CIPHERTEXT = 262_144


def made(path: Path, **config: Any) -> Path:
    return write(path, [a_round(number, up=(UP, UP), down=UP) for number in range(ROUNDS)], **config)


def as_json(in_process: Command, *arguments: Any) -> dict[str, Any]:
    code, out, err = in_process(main, *arguments, "--privacy", "--json")
    assert code == 0, err
    return json.loads(out)["runs"][0]


def test_costs_of_a_dense_log_are_those_worked_out_by_hand(in_process: Command, tmp_path: Path):
    row = as_json(in_process, made(tmp_path / "a.h5", compression={"codec": "none"}))
    each = CLIENTS * ROUNDS
    assert (row["uplink_bytes"], row["downlink_bytes"]) == (each * UP, each * UP)
    for name in ("secagg", "secaggplus"):
        assert row[f"{name}_refused"] == ""
        assert row[f"{name}_uplink_bytes"] == each * (UP + KEYS[0])
        assert row[f"{name}_downlink_bytes"] == each * (UP + KEYS[1])
    assert row["ckks_uplink_bytes"] == row["ckks_downlink_bytes"] == each * (53 + CIPHERTEXT)


@pytest.mark.parametrize(("codec", "reason"), sorted(secure.REASONS.items()))
def test_messages_that_do_not_add_up_are_refused_and_dense_is_shown(
    in_process: Command, tmp_path: Path, codec: str, reason: str
):
    row = as_json(in_process, made(tmp_path / "a.h5", compression={"codec": codec}))
    assert row["secagg_refused"] == row["ckks_refused"] == reason
    assert "secagg_uplink_bytes" not in row
    assert row["secagg_dense_uplink_bytes"] == CLIENTS * ROUNDS * (UP + KEYS[0])
    assert row["ckks_dense_downlink_bytes"] == CLIENTS * ROUNDS * (53 + CIPHERTEXT)


def test_every_codec_of_the_package_is_judged():
    assert {*secure.DENSE, *secure.REASONS} == set(CODECS)
    assert not set(secure.DENSE) & set(secure.REASONS)


@pytest.mark.parametrize(
    ("config", "secagg", "ckks"),
    [
        ({"compression": {"codec": "fetchsgd"}}, "", "cannot see"),
        ({"compression": {"codec": "mine:Codec"}}, "own codec", "own codec"),
        ({"compression": {"codec": "none"}, "server": {"aggregator": "mine:median"}}, "each client's update", "update"),
        (
            {"compression": {"codec": "none"}, "privacy": {"clip_norm": 0.5, "where": "server"}},
            "the server clips each client's update",
            "clips",
        ),
        ({"compression": {"codec": "none"}, "privacy": {"clip_norm": 0.5, "where": "client"}}, "", ""),
        ({"method": "fedproto"}, "leaves out the classes", "leaves out the classes"),
    ],
)
def test_who_is_refused_what(in_process: Command, tmp_path: Path, config: dict[str, Any], secagg: str, ckks: str):
    row = as_json(in_process, made(tmp_path / "a.h5", **config))
    assert secagg in row["secagg_refused"]
    assert bool(secagg) == bool(row["secagg_refused"])
    assert ckks in row["ckks_refused"]


def test_the_tables_say_the_same_and_name_reason_and_parameters(in_process: Command, tmp_path: Path):
    path = made(tmp_path / "a.h5")
    code, out, _ = in_process(main, path, "--privacy", "--format", "markdown", "--protocol", "neighbours=50")
    assert code == 0
    table = out[out.index("Secure aggregation and homomorphic encryption") :]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| ")]
    del cells[1]  # the marks of alignment
    assert cells[1][1:] == ["as logged", "svd", f"{UP}", f"{UP}", "-", "-", f"{6 * 2 * UP}", "1"]
    assert cells[2][1:] == ["SecAgg", f"svd: refused, {secure.REASONS['svd']}", *["-"] * 6]
    dense = [UP + KEYS[0], UP + KEYS[1]]
    assert cells[3][1:7] == ["SecAgg", "dense instead", *map(str, dense), *map(str, KEYS)]
    assert cells[3][7] == str(6 * sum(dense))
    assert "at most 50 neighbours" in table
    assert "262,144 bytes per 4,096 numbers" in table
    for form in ("table", "latex"):
        code, out, _ = in_process(main, path, "--privacy", "--format", form)
        assert code == 0
        assert "refused" in out
    _, out, _ = in_process(main, path, "--privacy", "--format", "csv")
    (row,) = csv.DictReader(io.StringIO(out))
    assert int(row["secagg_dense_uplink_bytes"]) == 6 * dense[0]


@pytest.mark.parametrize("version", [2, 3, 4])
def test_logs_of_every_version_have_costs(in_process: Command, tmp_path: Path, version: int):
    row = as_json(in_process, golden_logs.unpack(version, tmp_path))
    assert row["secagg_refused"]
    assert row["ckks_dense_uplink_bytes"] > 0


def test_a_run_without_exchange_has_none_and_protocol_needs_privacy(in_process: Command, tmp_path: Path):
    path = made(tmp_path / "a.h5")
    code, _, err = in_process(main, path, "--protocol", "degree=4096")
    assert (code, "--protocol sets parameters of --privacy" in err) == (2, True)
    code, _, err = in_process(main, path, "--privacy", "--protocol", "degree=5")
    assert (code, "degree is a power of two" in err) == (2, True)


def test_encryption_has_columns_of_its_own_where_messages_are_encrypted(in_process: Command, tmp_path: Path):
    path, plain_log = golden_logs.unpack(4, tmp_path), made(tmp_path / "plain.h5")
    log = costlog.read(path)
    added = 28 * log["uplink"]["bytes"].size
    row = as_json(in_process, path)
    assert row["uplink_encryption_bytes"] == added
    assert row["encryption_bytes"] == added + row["downlink_encryption_bytes"]
    assert row["seconds_encrypt"] == pytest.approx(log["rounds"]["seconds_encrypt"].sum())
    _, out, _ = in_process(main, path, plain_log)
    assert "encryption" in out
    assert "Encryption: nonces and tags of all clients" in out
    assert " encrypt " in out
    _, out, _ = in_process(main, plain_log)
    assert "ncrypt" not in out[: out.index("Logs")]
    tags = dict(events.scalars(Run(path, Target())))
    assert tags["bytes_per_round/uplink_encryption"].sum() == added
    assert "seconds/encrypt" in tags
    assert page_data.build([[Run(path, Target())]], Target())["logs"][0]["phases"]["names"][-2:] == ["encrypt", "total"]


@pytest.mark.parametrize("column", ["rounds/uplink_encryption_bytes", "downlink/encryption_bytes"])
def test_a_log_that_lacks_one_of_the_columns_of_encryption_is_damaged(tmp_path: Path, column: str):
    path = golden_logs.unpack(4, tmp_path)
    with h5py.File(path, "r+") as file:
        del file[column]
    with pytest.raises(UserError, match=f"damaged: {column} and uplink/encryption_bytes are not both there"):
        costlog.read(path)


def test_bytes_of_encryption_that_do_not_add_up_are_damage(tmp_path: Path):
    path = golden_logs.unpack(4, tmp_path)
    with h5py.File(path, "r+") as file:
        file["rounds/uplink_encryption_bytes"][1] += 1
    with pytest.raises(UserError, match="rounds/uplink_encryption_bytes of row 1 is not the sum"):
        costlog.read(path)
