"""The table of encoding numbers: the manual repeats it."""

from __future__ import annotations

import re
from pathlib import Path

from fedkd_mpi.codecs import CODECS
from fedkd_mpi.codecs.tags import TAGS

PAGE = Path(__file__).parents[2] / "docs" / "codecs.md"
ROW = re.compile(r"^\| (\d+) \| ([^|]+) \| ([^|]+) \| (.+) \|$", re.MULTILINE)


def test_the_manual_has_exactly_the_tables_encoding_numbers():
    section = PAGE.read_text(encoding="utf-8").partition("## Encoding numbers\n")[2].partition("\n## ")[0]
    rows = {int(row[0]): (row[1], tuple(re.findall("`([^`]+)`", row[2])), row[3]) for row in ROW.findall(section)}
    assert rows == {number: tuple(tag) for number, tag in TAGS.items()}


def test_every_codec_has_a_number_of_the_table():
    assert {name for tag in TAGS.values() for name in tag.codecs} == {*CODECS, "package.module:Class"}
