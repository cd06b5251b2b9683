"""Every number that a person gives has bounds, and no value of any key ends in a trace."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from annotated_types import Ge, Gt, Le, Lt
from command import Command, assert_refused
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from fedkd_mpi import tasks
from fedkd_mpi.codecs.byte_budget import require_room, spread
from fedkd_mpi.common import yaml_loader
from fedkd_mpi.config import pairs
from fedkd_mpi.config.load import load, parse
from fedkd_mpi.config.schema import Config
from fedkd_mpi.datasets import LOADERS, OWN
from fedkd_mpi.datasets.options import OPTIONS
from fedkd_mpi.errors import UserError
from fedkd_mpi.models.options import FAMILIES
from fedkd_mpi.report.links import Profile
from fedkd_mpi.run import main
from fedkd_mpi.sweep import Sweep

Leaf = tuple[str, type, list[Any]]
MODELS = [Config, Sweep, Profile, *dict.fromkeys(OPTIONS.values()), *(family.options for family in FAMILIES.values())]


def numbers(kind: Any, metadata: list[Any]) -> Iterator[tuple[type, list[Any]]]:
    """Yield the int and float types inside an annotation, each with the bounds that hold for it."""
    if kind in (int, float):
        yield kind, metadata
    elif isinstance(kind, type) and issubclass(kind, BaseModel):
        return
    elif hasattr(kind, "__metadata__"):
        flat = [part for item in kind.__metadata__ for part in getattr(item, "metadata", [item])]
        yield from numbers(kind.__origin__, [*metadata, *flat])
    else:
        inside = [] if get_origin(kind) in (list, tuple, dict) else metadata
        for part in get_args(kind):
            yield from numbers(part, inside)


def leaves(model: type[BaseModel]) -> Iterator[Leaf]:
    for name, field in model.model_fields.items():
        for kind, metadata in numbers(field.annotation, list(field.metadata)):
            yield f"{model.__name__}.{name}", kind, metadata
        for part in (field.annotation, *get_args(field.annotation)):
            for kind in (part, *get_args(part)):
                if isinstance(kind, type) and issubclass(kind, BaseModel):
                    yield from leaves(kind)


LEAVES = [leaf for model in MODELS for leaf in leaves(model)]


def test_the_walk_finds_the_numbers():
    assert {"Config.seed", "Config.threads_per_rank", "NetworkConfig.learning_rate", "WatchdogConfig.abort_seconds"} < {
        name for name, *_ in LEAVES
    }
    assert len(LEAVES) > 60


@pytest.mark.parametrize(("name", "kind", "bounds"), LEAVES, ids=[name for name, *_ in LEAVES])
def test_every_number_has_a_lower_and_an_upper_bound(name: str, kind: type, bounds: list[Any]):
    assert any(isinstance(bound, Ge | Gt) for bound in bounds), f"{name} has no lower bound"
    assert any(isinstance(bound, Le | Lt) for bound in bounds), f"{name} has no upper bound"


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_numbers_are_never_taken_from_truths_texts_or_what_is_not_finite(model: type[BaseModel]):
    for name, field in model.model_fields.items():
        kinds = {kind for kind, _ in numbers(field.annotation, [])}
        if not kinds:
            continue
        listed = get_origin(field.annotation) is list
        for bad in (True, False, "3", math.nan, math.inf, -math.inf, *([2.0] if kinds == {int} else [])):
            with pytest.raises(ValidationError) as caught:
                model.model_validate({name: [bad] if listed else bad})
            assert any(fault["loc"][0] == name for fault in caught.value.errors()), (name, bad)


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        inner = [kind for kind in (field.annotation, *get_args(field.annotation)) if isinstance(kind, type)]
        sections = [kind for kind in inner if issubclass(kind, BaseModel)]
        yield prefix + name
        for section in sections:
            yield from keys(section, f"{prefix}{name}.")


KEYS = [*keys(Config), "teacher.hidden", "student.hidden", "student.activation", "data.own", "a.b.c.d"]
WORDS = """yes no on off true null ~ .nan .inf -.inf 0 -1 -0.0 1e300 1e-300 1e999 008 0o17 0x10 1_000 1:30 2026-11-29
    [] {} '' "\\0" "\\ud800" [[[]]] {a:[]} !!python/object:os.system * & | > @ ` % 18446744073709551616 [1000000000]
    [[1]] '3' '1e3' ../../x /dev/zero svd none auto cuda:99999 ٣"""
LONG = ["9" * 5000, "[" * 5000, "x" * 100_000]
ODD = st.one_of(
    st.sampled_from(WORDS.split()),
    st.integers().map(str),
    st.floats().map(str),
    st.text(max_size=20),
    st.sampled_from(range(len(LONG))).map(LONG.__getitem__),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(KEYS), ODD), min_size=1, max_size=2))
@example([("name", "a" * 250)])
@example([("rounds", "yes"), ("optimizer.clip_norm", "true")])
@example([("data.root", '"\\0"')])
def test_any_value_of_any_key_is_a_configuration_or_one_line(in_process: Command, chosen: list[tuple[str, str]]):
    code, out, err = in_process(main, "--print-config", *(f"{key}={value}" for key, value in chosen))
    if code == 0:
        assert not err
        config = load(overrides=[f"{key}={value}" for key, value in chosen])
        assert parse(yaml_loader.parse_mapping(out, "stdout")).to_yaml() == config.to_yaml()
    else:
        assert_refused((code, out, err), "")
        assert len(err) < 1000


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(exclude_characters="\0"), max_size=12))
@example("\udcff=1")
@example("a[0]=1")
@example("seed\n=1")
@example("--\n")
@example(".".join("a" * 5000) + "=1")
def test_any_argument_is_an_override_or_one_line(in_process: Command, text: str):
    code, _, err = in_process(main, "--print-config", text)
    assert code in (0, 2)
    assert len((err if code else "one").splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["threads_per_rank=5000"], "threads_per_rank=5000: must be less than or equal to 4096"),
        (["threads_per_rank=4000"], "threads_per_rank=4000 is more than this node's "),
        (["seed=18446744073709551616"], "seed=18446744073709551616: must be less than 9223372036854775808"),
        (["compression.codec=rdsvd", "compression.run_budget=1"], "; give at least "),
        (["compression.codec=svd", "compression.byte_budget=3"], "; give at least "),
        (["student.hidden=[1000000000]"], "student.hidden.0=1000000000: must be less than"),
        (
            ["student.hidden=[1000000,1000000]"],
            "student: a mlp of 1,000,076,000,010 parameters with its gradients: that is 8.00 TB",
        ),
        (
            ["teacher.hidden=[1000000,1000000]"],
            "teacher: a mlp of 1,000,076,000,010 parameters with its gradients: that is 8.00 TB",
        ),
        (["stack=1000000"], "stack (1000000) must not exceed num_clients (4)"),
        (["num_clients=1000000000000"], "num_clients=1000000000000: must be"),
        (["num_clients=10000000"], "num_clients=10000000 with partition.min_samples=8 needs 80000000 samples"),
        (["distillation.floor=1e300"], "distillation.floor=1e+300: must be less than or equal to 1e+30"),
        (["--output", "a" * 250], "the name is too long"),
        (["--output", "a\nb.h5"], "--output a\\nb.h5: "),
        (["--output", "\udcff.h5"], "--output \\udcff.h5: "),
        (["name=" + "a" * 250], "at most 200 characters"),
    ],
    ids=lambda value: " ".join(value)[:40].encode(errors="replace").decode() if isinstance(value, list) else "",
)
def test_what_would_not_fit_is_refused_before_it_is_asked_for(
    command: Command, tmp_path: Any, arguments: list[str], words: str
):
    assert_refused(command(*arguments), words)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("growth", [1.0, 3.0, 0.25])
def test_the_least_budget_of_a_run_is_told_and_enough(growth: float):
    with pytest.raises(UserError, match="; give at least ") as caught:
        require_room("run_budget", 1, 31, 7, 3, growth)
    least = int(str(caught.value).rsplit(maxsplit=1)[1])
    require_room("run_budget", least, 31, 7, 3, growth)
    with pytest.raises(UserError):
        require_room("run_budget", least - 1, 31, 7, 3, growth)
    assert 31 <= min(spread(least, 7, 3, growth)) <= 32


def test_the_table_of_pairs_knows_all_there_is():
    assert set(pairs.TASKS) == set(tasks.TASKS)
    assert {name for needs in pairs.TASKS.values() for name in needs.data} == set(LOADERS)
    assert {name for needs in pairs.TASKS.values() for name in needs.models} == set(FAMILIES)


@pytest.mark.parametrize(("task", "data"), [*product(pairs.TASKS, LOADERS)])
def test_data_and_task_that_do_not_fit_are_refused_by_both_names(task: str, data: str):
    model = f"{{name: {pairs.TASKS[task].models[0]}, learning_rate: 0.1}}"
    settings = [f"task={task}", f"data.name={data}", f"teacher={model}", f"student={model}"]
    settings += ["data.path=mine"] if data in OWN else []
    config = load(overrides=settings)
    if data in pairs.TASKS[task].data:
        pairs.check(config)
        return
    with pytest.raises(UserError, match=f"data.name={data} does not match task={task}, which needs"):
        pairs.check(config)


@pytest.mark.parametrize("role", ["teacher", "student"])
@pytest.mark.parametrize("action", [[], ["--print-config"], ["--dry-run"]], ids=str)
def test_a_model_that_does_not_fit_the_task_is_refused_by_both_names(command: Command, role: str, action: list[str]):
    model = [f"{role}=null", role + "={name: bert, learning_rate: 0.1}", *action]
    assert_refused(command(*model), f"{role}.name=bert does not match task=image_classification, which needs mlp")


def test_data_of_a_users_own_that_do_not_fit_the_task_are_refused_by_both_names(command: Command, tmp_path: Path):
    result = command("data.name=worker_parts:unlabelled", "partition={kind: iid}", "--output", "own.h5")
    assert_refused(
        result, "data.name=worker_parts:unlabelled does not match task=image_classification: y missing in train"
    )
    assert not (tmp_path / "own.h5").exists()
