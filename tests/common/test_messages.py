"""What a message shows of values and paths."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedkd_mpi.config.load import load
from fedkd_mpi.errors import UserError, shown


@pytest.mark.parametrize("depth", [1, 10, 30])
def test_a_path_is_shown_whole(depth: int) -> None:
    path = Path("/", *["some-folder"] * depth, "x.yaml")
    assert shown(path) == shown(str(path)) == str(path)
    with pytest.raises(UserError) as refused:
        load(path)
    assert str(path) in str(refused.value)
    with pytest.raises(UserError) as refused:
        load(overrides=[f"data={{name: csv, path: {path}, label: [1]}}"])
    assert str(refused.value).count("\n") == 0


def test_what_is_long_is_cut() -> None:
    assert len(shown("x" * 1000)) < 100
    assert len(shown(Path("/" + "x/" * 1000))) < 430
    assert shown("a\nb\x1b") == r"a\nb\x1b"
