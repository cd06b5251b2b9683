"""Checks of a log before a run is resumed from it: the digest of its configuration, and the code that it names.

A log may come from another person. Its configuration can name code (package.module:Name), which a resumed run imports
and calls. It does so only if the command line names that code again or passes --trust-log.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedkd_mpi.common import yaml_loader
from fedkd_mpi.config import load as configuration
from fedkd_mpi.config.schema import Config, identity_of
from fedkd_mpi.costlog.door import digest
from fedkd_mpi.errors import UserError


def own_parts(config: Config) -> dict[str, str]:
    """Return the code outside this package that a configuration names: key -> package.module:Name."""
    named = {"task": config.task.name, "data.name": config.data.name, "compression.codec": config.compression.codec}
    named |= {"method": config.method.name, "sampler": config.sampler, "server.aggregator": config.server.aggregator}
    named |= {"partition.kind": config.partition.kind, "compression.schedule": config.compression.schedule}
    named |= {f"evaluate.metrics.{index}": name for index, name in enumerate(config.evaluate.metrics)}
    named |= {f"{key}.name": getattr(config, key).name for key in ("teacher", "student") if getattr(config, key)}
    named |= {f"teachers.{index}.name": network.name for index, network in enumerate(config.teachers or [])}
    named |= {"optimizer.name": config.optimizer.name, "schedule.name": config.schedule.name}
    return {key: name for key, name in named.items() if ":" in name and not name.startswith("torch.optim:")}


def again(path: Path, config: Config, option: str = "--resume") -> str:
    """Return the command that resumes the run of a log or, with `option` --config, runs it again."""
    words = [option, str(path), *(f"{key}={name}" for key, name in own_parts(config).items())]
    return f"python -m fedkd_mpi.run {shlex.join(words)}"


def configuration_in(path: Path, attrs: Mapping[str, Any]) -> Config:
    """Return the configuration in the attributes of a log; raises UserError if they contradict one another."""
    text, told = attrs["config"], attrs["config_digest"]
    found = digest(text)
    if found != told:
        raise UserError(f"{path} was changed: the digest of its configuration is {found}, its config_digest is {told}")
    try:
        config = configuration.parse(yaml_loader.parse_mapping(text, "it"))
    except UserError as error:
        raise UserError(f"the configuration in {path}: {error}") from None
    for key, value in (("num_clients", config.num_clients), ("seed", config.seed)):
        if attrs[key] != value:
            raise UserError(f"{path} was changed: its attribute {key} is {attrs[key]}, its configuration has {value}")
    return config


def identity_in(attrs: Mapping[str, Any]) -> str:
    """Return the identity of a log's run, by which its checkpoints name it; an older version may have written both."""
    return identity_of(yaml_loader.parse_mapping(attrs["config"], "it"))


def require_one_name(path: Path) -> None:
    """Raise UserError if a log has a second name (a hard link): lock and checkpoints belong to one name."""
    if (names := path.stat().st_nlink) > 1:
        raise UserError(
            f"{path} is one of {names} names of the same file: copy it, or remove the others, and resume one"
        )


def accept(path: Path, config: Config, overrides: Sequence[str], trusted: bool, option: str = "--resume") -> list[str]:
    """Return those overrides that differ from the configuration of the log.

    Raises UserError naming the code that the log would run, unless the overrides name it again or the log is `trusted`.
    """
    logged = dict(_leaves(config.model_dump(mode="json")))
    fresh, repeated = [], set()
    parts = own_parts(config)
    for override in overrides:
        key, _, value = override.partition("=")
        if parts.get(key) == value:
            repeated.add(key)
            continue
        tree: dict[str, Any] = {}
        configuration.apply(tree, override)
        leaves = dict(_leaves(tree))
        if all(key in logged and logged[key] == value for key, value in leaves.items()):
            repeated |= leaves.keys()
        else:
            fresh.append(override)
    unnamed = {key: name for key, name in parts.items() if key not in repeated}
    if unnamed and not trusted:
        code = ", ".join(f"{key}={name}" for key, name in unnamed.items())
        how = f"name it again ({again(path, config, option)}), or pass --trust-log"
        raise UserError(f"{path} names code to run, {code}: if it is yours, {how}")
    return fresh


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of every leaf of nested mappings and lists."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else None
    if not pairs:
        yield prefix, tree
        return
    for key, value in pairs:
        yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
