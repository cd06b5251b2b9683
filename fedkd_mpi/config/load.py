"""Loading of a configuration: YAML with dotted KEY=VALUE overrides; unknown keys are refused."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from fedkd_mpi.common import yaml_loader
from fedkd_mpi.common.options import Hint, validated
from fedkd_mpi.common.registry import require_known
from fedkd_mpi.config import pairs
from fedkd_mpi.config.codecs import CODECS
from fedkd_mpi.config.schema import CARE, Config
from fedkd_mpi.config.sections import KIND_OF, MAY_HAVE, DataConfig, InitConfig, NetworkConfig
from fedkd_mpi.config.shipped import presets, shipped
from fedkd_mpi.config.training import OPTIMIZERS_OF
from fedkd_mpi.datasets.options import OPTIONS
from fedkd_mpi.datasets.own_options import OWN
from fedkd_mpi.errors import UserError, shown
from fedkd_mpi.models.options import FAMILIES


def load(path: Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Return the configuration of a YAML file (default configs/digits.yaml) with KEY=VALUE overrides.

    A relative path that does not exist here is looked up in the shipped configurations, with or without .yaml. Raises
    UserError with one line that names the key and, if it is unknown, the nearest known key.
    """
    path = shipped(path or Path("digits.yaml"))
    try:
        tree = yaml_loader.read_mapping(path, "--config")
    except FileNotFoundError:
        known = ", ".join(sorted(str(file.relative_to(presets())) for file in presets().rglob("*.yaml")))
        raise UserError(f"--config {shown(path)} does not exist; shipped configurations: {known}") from None
    return of(tree, overrides)


def of(tree: dict[str, Any], overrides: Sequence[str] = ()) -> Config:
    """Return the configuration of a nested mapping, which is changed, with KEY=VALUE overrides; raises UserError."""
    kinds = {key: (kind,) for key, kind in (KIND_OF | MAY_HAVE).items()}
    for chosen, owners in (("partition.kind", kinds), ("optimizer.name", OPTIMIZERS_OF)):
        _let_go_of_others(tree, overrides, chosen, owners)
    for override in overrides:
        apply(tree, override)
    return parse(tree)


def _let_go_of_others(
    tree: dict[str, Any], overrides: Sequence[str], chosen: str, owners: Mapping[str, Sequence[str]]
) -> None:
    """Take those keys of a file's section away that belong to another value of the key `chosen` than an override's.

    `owners` contains the values that each key belongs to. Keys that are overridden themselves are checked as usual.
    """
    named = [value for key, _, value in (override.partition("=") for override in overrides) if key == chosen]
    section = tree.get(chosen.partition(".")[0])
    if named and isinstance(section, dict):
        for key, values in owners.items():
            if named[-1] not in values:
                section.pop(key, None)


def parse(tree: dict[str, Any]) -> Config:
    """Return the configuration of a nested mapping; raises UserError as load() does."""
    config = validated(Config, tree, Hint([*_keys(), *_own_keys(tree)], "--print-config shows all keys", "", USUAL))
    from fedkd_mpi import datasets, models

    require_known(config.task.name, pairs.TASKS, "task")
    require_known(config.data.name, datasets.LOADERS, "data.name")
    require_known(config.compression.codec, CODECS, "compression.codec")

    def fill(network: NetworkConfig, key: str) -> NetworkConfig:
        options = models.check(network.name, network.options(), key)
        kept = {name: getattr(network, name) for name in NetworkConfig.model_fields}
        return NetworkConfig(**kept, **options)

    alone = {"teacher": config.teacher, "student": config.student}
    filled: dict[str, Any] = {key: fill(network, key) for key, network in alone.items() if network}
    if config.teachers:
        filled["teachers"] = [fill(network, f"teachers.{index}") for index, network in enumerate(config.teachers)]
    data, own = config.data, datasets.check(config.data.name, config.data.options())
    if data.name in datasets.OWN and data.root is not None:
        raise UserError(f"data.root: data.name={data.name} reads data.path alone; give the whole path there")
    filled["data"] = DataConfig(**{name: getattr(data, name) for name in DataConfig.model_fields}, **own)
    filled["init"] = _with_digests(config.init)
    return config.model_copy(update=filled)


def _with_digests(init: InitConfig) -> InitConfig:
    """Return the section with the digests of its files; one that is given is believed until the file is read."""
    found = {}
    for role in ("student", "teacher"):
        path = getattr(init, role)
        if path is not None and getattr(init, f"{role}_digest") is None:
            try:
                found[f"{role}_digest"] = hashlib.sha256(path.expanduser().read_bytes()).hexdigest()
            except OSError as error:
                raise UserError(f"init.{role}={shown(path)}: cannot be read ({error.strerror})") from None
    return init.model_copy(update=found)


def with_care(config: Config, overrides: Sequence[str]) -> Config:
    """Return the configuration with overrides of the keys in CARE; raises UserError on any other key."""
    tree = config.model_dump(mode="json")
    for override in overrides:
        key = override.partition("=")[0]
        if key.partition(".")[0] not in CARE:
            raise UserError(f"--resume takes {key} from the log: only rounds, {', '.join(CARE)} may be changed")
        apply(tree, override)
    return parse(tree)


def apply(tree: dict[str, Any], text: str) -> None:
    """Apply an override KEY=VALUE to a nested mapping; raises UserError if it is invalid."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"override '{shown(text)}' is not KEY=VALUE, for example rounds=50 or compression.t_end=0.99")
    if not re.fullmatch(r"[A-Za-z_][\w-]*(\.[A-Za-z_][\w-]*){0,9}", key, re.ASCII):
        raise UserError(f"override '{shown(text)}': '{shown(key)}' is not a key: names with dots between them")
    *parents, last = key.split(".")
    for parent in parents:
        if not isinstance(tree.setdefault(parent, {}), dict):
            raise UserError(f"override '{shown(text)}': {parent} is not a section")
        tree = tree[parent]
    try:
        tree[last] = yaml_loader.parse_override(value)
    except ValueError as error:
        raise UserError(f"override '{shown(text)}': the value is not YAML: {error}") from None


# What keys are called elsewhere, and the keys that are meant.
RATES = ("teacher.learning_rate", "student.learning_rate")
USUAL = {
    "lr": RATES,
    "learning_rate": RATES,
    "wd": ("optimizer.weight_decay",),
    "bs": ("local.batch_size",),
    "batch": ("local.batch_size",),
    "grad_clip": ("optimizer.clip_norm",),
    "max_grad_norm": ("optimizer.clip_norm",),
    "clients": ("num_clients",),
    "num_rounds": ("rounds",),
    "dataset": ("data.name",),
    "model": ("teacher.name", "student.name"),
    "hidden": ("teacher.hidden", "student.hidden"),
    "threads": ("threads_per_rank",),
}


def _own_keys(tree: Mapping[str, Any]) -> Iterator[str]:
    """Yield the keys of the networks and of the data set that a configuration names, apart from those of all."""
    for section, kinds in (
        ("data", {**OPTIONS, **OWN}),
        *((role, {name: family.options for name, family in FAMILIES.items()}) for role in ("teacher", "student")),
    ):
        part = tree.get(section)
        name = part.get("name") if isinstance(part, dict) else None
        kind = kinds.get(name) if isinstance(name, str) else None
        yield from (f"{section}.{key}" for key in (kind.model_fields if kind else ()))


def _keys(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _keys(kind, f"{prefix}{name}.")
