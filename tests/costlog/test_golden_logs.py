"""Logs of each schema version, kept in tests/golden: 2, 3 and 4 are read to the last bit, version 1 is refused."""

from __future__ import annotations

import json
from pathlib import Path

import golden_logs as golden
import logs
import pytest

from fedkd_mpi import costlog
from fedkd_mpi.costlog import schema
from fedkd_mpi.costlog.schema import SCHEMA_VERSION
from fedkd_mpi.errors import UserError


def test_the_golden_log_of_this_schema_version_is_read_as_when_it_was_written(tmp_path: Path):
    found = json.loads(json.dumps(golden.plain(costlog.read(golden.unpack(SCHEMA_VERSION, tmp_path)))))
    expected = golden.expected(SCHEMA_VERSION)
    assert repr(found) == repr(expected)  # NaN is like NaN here
    assert len(expected["rounds"]["round"][2]) == golden.ROUNDS


def test_a_log_of_version_3_is_read_as_when_it_was_written(tmp_path: Path):
    found = json.loads(json.dumps(golden.plain(costlog.read(golden.unpack(3, tmp_path)))))
    assert repr(found) == repr(golden.expected(3))
    assert not any("encrypt" in name for columns in found.values() for name in columns)


def test_a_log_of_version_2_is_read_as_when_it_was_written_and_has_no_starts(tmp_path: Path):
    log = golden.unpack(2, tmp_path)
    found = json.loads(json.dumps(golden.plain(costlog.read(log))))
    expected = golden.expected(2)
    assert found["attrs"].pop("data") == []
    for table in ("starts", "files"):
        columns = found.pop(table)
        assert columns.keys() == schema.FIXED[table].keys() - schema.optional(table)
        assert all(shape == [0] for _, shape, _ in columns.values())
    assert repr(found) == repr(expected)


def test_a_log_of_version_2_goes_on_as_one_of_the_present_version(tmp_path: Path):
    log = golden.unpack(2, tmp_path)
    with costlog.Writer.resume(log, 2, start=logs.start(1)) as writer:
        writer.append_round(*logs.make_round(2))
        writer.finish("completed")
    found, expected = costlog.read(log), golden.expected(2)
    assert found["attrs"]["schema_version"] == SCHEMA_VERSION == 4
    assert found["starts"]["torch"].tolist() == ["torch 1"]
    assert "digest" not in found["clients"]
    assert found["uplink"]["bytes"].tolist() == expected["uplink"]["bytes"][2]


def test_a_log_of_version_1_is_refused_by_its_number(tmp_path: Path):
    log = golden.unpack(1, tmp_path)
    with pytest.raises(UserError) as caught:
        costlog.read(log)
    assert str(caught.value) == f"{log} has schema_version 1, but this fedkd_mpi reads 2, 3 and 4"
