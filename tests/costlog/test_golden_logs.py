"""Logs of each schema version, kept in tests/golden: the present one is read to the last bit, an older one refused."""

from __future__ import annotations

import json
from pathlib import Path

import golden_logs as golden
import pytest

from fedkd_mpi import costlog
from fedkd_mpi.costlog.schema import SCHEMA_VERSION
from fedkd_mpi.errors import UserError


def test_the_golden_log_of_this_schema_version_is_read_as_when_it_was_written(tmp_path: Path):
    found = json.loads(json.dumps(golden.plain(costlog.read(golden.unpack(SCHEMA_VERSION, tmp_path)))))
    expected = golden.expected(SCHEMA_VERSION)
    assert repr(found) == repr(expected)  # NaN is like NaN here
    assert len(expected["rounds"]["round"][2]) == golden.ROUNDS


@pytest.mark.parametrize("version", range(1, SCHEMA_VERSION))
def test_a_log_of_an_earlier_schema_version_is_refused_by_its_number(version: int, tmp_path: Path):
    log = golden.unpack(version, tmp_path)
    with pytest.raises(UserError) as caught:
        costlog.read(log)
    assert str(caught.value) == f"{log} has schema_version {version}, but this fedkd_mpi reads {SCHEMA_VERSION}"
