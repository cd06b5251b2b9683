"""The file of a sweep: a list or grid of runs, and what is published of the same setting."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from fedkd_mpi.common import yaml_loader
from fedkd_mpi.common.options import Hint, Options, validated
from fedkd_mpi.config.sections import HUGE, MANY
from fedkd_mpi.config.shipped import shipped
from fedkd_mpi.errors import UserError, shown

MOST = 10_000  # runs per sweep
Text = Annotated[str, Field(max_length=500)]


class PublishedRow(Options):
    """A figure that others have published, and the run of the sweep that is to be compared with it."""

    method: Text = Field(description="as it is called there")
    value: float | None = Field(None, ge=-HUGE, le=HUGE, description="as it is printed there; null: not known")
    run: str | None = Field(None, description="run of this sweep that is the same method; null: none is")
    mark: Literal["paper", "code", "?"] = Field(
        "paper", description="paper: printed there; code: of its code; ?: quoted elsewhere, or derived"
    )
    note: Text = ""


class Published(Options):
    """What is published of one setting: where, which of our scores it is, and its rows."""

    source: Text
    score: Literal["global_student", "teacher", "student", "teacher_weighted", "teacher_by_client"] = "teacher_weighted"
    which: Literal["last", "best"] = "best"
    client: Annotated[int, Field(ge=0, lt=MANY)] | None = Field(None, description="of teacher_by_client")
    metric: str | None = Field(None, description="metric of the score; null: the first of the log")
    scale: float = Field(100.0, gt=0, le=1e6, description="our score times this is what is printed there")
    rows: list[PublishedRow] = Field(min_length=1, max_length=100)


class Sweep(Options):
    """The keys of SWEEP.yaml."""

    config: str = Field(description="file beside the sweep, or the name of a shipped configuration")
    output: Annotated[Path | None, Field(strict=False)] = Field(
        None, description="folder of the logs; default runs/<name of the sweep>"
    )
    seeds: list[Annotated[int, Field(ge=0, lt=2**63)]] = Field([0], min_length=1, max_length=MOST)
    set: dict[str, Any] = Field({}, description="key -> value, in all runs")
    runs: dict[str, dict[str, Any]] = Field(
        {"run": {}}, min_length=1, max_length=MOST, description="name -> key -> value"
    )
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(
        {}, description="key -> values; every run with every combination"
    )
    published: Published | None = Field(None, description="figures that the report prints beside the runs")


def read(path: Path) -> Sweep:
    """Return the sweep of a file; raises UserError that names the key."""
    try:
        tree = yaml_loader.read_mapping(path, "the sweep")
    except FileNotFoundError:
        raise UserError(f"the sweep {shown(path)} does not exist") from None
    hint = Hint(list(Sweep.model_fields), f"the keys are {', '.join(Sweep.model_fields)}")
    sweep = validated(Sweep, tree, hint, where=f"sweep {shown(path)}: ")
    for place, keys in (("set", sweep.set), ("grid", sweep.grid), *sweep.runs.items()):
        if wrong := _lost(keys):
            raise UserError(f"sweep {shown(path)}: {shown(place)}: {wrong}")
    for number, row in enumerate(sweep.published.rows if sweep.published else ()):
        if row.run is not None and row.run not in sweep.runs:
            runs = ", ".join(sweep.runs)
            raise UserError(f"sweep {shown(path)}: published.rows.{number}.run={shown(row.run)} is none of {runs}")
    return sweep


def published(path: Path) -> Published:
    """Return what a sweep, or a shipped one of that name, says is published; raises UserError."""
    found = read(shipped(path)).published
    if found is None:
        raise UserError(f"sweep {shown(path)} has no section published")
    return found


def _lost(keys: Mapping[str, Any]) -> str | None:
    """Return why some of the keys would have no effect, or None."""
    if "seed" in keys:
        return "seed is given by seeds, as a list"
    order = list(keys)
    for at, section in enumerate(order):
        inside = next((key for key in order[:at] if key.startswith(f"{section}.")), None)
        if inside:
            return f"{shown(section)} replaces {shown(inside)}: put that into it"
    return None
