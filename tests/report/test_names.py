"""Names of runs: what differs is shown, ids are unique file names, and what is the same is not mixed up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from made_logs import a_round, write

from fedkd_mpi.errors import UserError
from fedkd_mpi.report import names
from fedkd_mpi.report.runs import Run, Target, groups


def named(tmp_path: Path, *configs: dict[str, Any]) -> list[names.Name]:
    paths = [write(tmp_path / f"{number}.h5", [a_round(0)], **config) for number, config in enumerate(configs)]
    return names.name(groups([Run(path, Target()) for path in paths]))


def test_columns_are_the_keys_in_which_runs_differ(tmp_path: Path):
    found = named(
        tmp_path,
        {"compression": {"codec": "svd"}, "server": {"weighting": "uniform"}, "rounds": 3},
        {"compression": {"codec": "svd"}, "server": {"weighting": "samples"}, "rounds": 3},
        {"compression": {"codec": "quantize", "bits": 8}, "server": {"weighting": "uniform"}, "rounds": 3},
    )
    assert [dict(name.settings) for name in found] == [
        {"codec": "svd", "weighting": "uniform", "bits": "-"},
        {"codec": "svd", "weighting": "samples", "bits": "-"},
        {"codec": "quantize", "weighting": "uniform", "bits": "8"},
    ]
    assert [name.text for name in found] == [
        "codec=svd, weighting=uniform",
        "codec=svd, weighting=samples",
        "codec=quantize, weighting=uniform, bits=8",
    ]
    assert [name.id for name in found] == ["made-up-1", "made-up-2", "made-up-3"]


def test_keys_that_a_run_does_not_use_do_not_differ(tmp_path: Path):
    found = named(
        tmp_path,
        {"averaging": {"network": "student"}},
        {"averaging": {"network": "teacher"}, "seed": 2},
        {"method": "fedavg", "averaging": {"network": "teacher"}},
    )
    assert [name.text for name in found][2] == "method=fedavg, network=teacher"
    assert "network" not in found[0].text


def test_short_names_of_keys_mean_one_key():
    keys = {"compression.codec", "teacher.name", "student.name", "schedule.gamma", "compression.schedule", "rounds"}
    assert names.shortened(keys) == {
        "compression.codec": "codec",
        "teacher.name": "teacher.name",
        "student.name": "student.name",
        "schedule.gamma": "gamma",
        "compression.schedule": "compression.schedule",
        "rounds": "rounds",
    }


def test_seeds_are_one_group_and_a_repeated_seed_is_another(tmp_path: Path):
    found = named(tmp_path, {"seed": 1}, {"seed": 2}, {"seed": 1})
    assert [name.seeds for name in found] == [(1, 2), (1,)]
    assert [name.id for name in found] == ["made-up-1", "made-up-2"]
    assert [len(name.logs) for name in found] == [2, 1]


@pytest.mark.parametrize(
    "given",
    [
        ["a", "A", "a-1", "a"],
        ["../../etc/passwd", "etc/passwd", "..", "", " ", "-", "_"],
        ["x" * 300, "x" * 300 + "y", "[31mred", "<script>", "$a$", "ﬁ", "fi"],
        ["é", "e\u0301", "数字", "数字", "a/b", "a b"],
    ],
)
def test_ids_are_unique_file_names_whatever_the_names_in_the_logs(tmp_path: Path, given: list[str]):
    found = named(tmp_path, *({"name": own, "rounds": number + 1} for number, own in enumerate(given)))
    ids = [name.id for name in found]
    assert len({ident.lower() for ident in ids}) == len(ids)
    assert all(Path(ident).name == ident and not ident.startswith((".", "-")) for ident in ids)
    assert all(ident.isprintable() and len(ident) < 50 and not set(ident) & set(' /\\:*?"<>|$') for ident in ids)


def test_a_label_is_cut_where_a_setting_ends_and_says_so(tmp_path: Path):
    configs = [{"compression": {"codec": codec, "t_start": codec}, "rounds": codec} for codec in ("aa", "bb")]
    first = named(tmp_path, *configs)[0]
    assert first.label() == "made-up-1: codec=aa, t_start=aa, rounds=aa"
    assert first.label(30) == "made-up-1: codec=aa, …"


def test_a_run_is_found_by_what_a_person_would_type(tmp_path: Path):
    found = named(tmp_path, {"name": "one"}, {"name": "two"}, {"name": "two", "rounds": 7})
    assert names.find(found, "two-2", "--baseline") == 2
    assert names.find(found, "one", "--baseline") == 0
    assert names.find(found, str(tmp_path / "1.h5"), "--baseline") == 1
    with pytest.raises(UserError, match=r"--baseline two means several runs: .*one, two-1, two-2"):
        names.find(found, "two", "--baseline")
    with pytest.raises(UserError, match="three is no run"):
        names.find(found, "three", "--baseline")
