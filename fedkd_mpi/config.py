"""The one configuration of a run: frozen, typed, YAML with dotted KEY=VALUE overrides; unknown keys are refused."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator

from fedkd_mpi import yaml_loader
from fedkd_mpi.errors import UserError, shown
from fedkd_mpi.options import explain
from fedkd_mpi.registry import nearest
from fedkd_mpi.sections import (
    MANY,
    NAME,
    PART,
    YEARS,
    Averaging,
    Checkpoint,
    Compression,
    Data,
    Distillation,
    Evaluate,
    Local,
    Log,
    Network,
    Optimizer,
    Partition,
    Section,
    Server,
    Watchdog,
    seconds_of,
)


class Config(Section):
    """Everything that decides the bits of a run, apart from the build and the data files, and how it is kept safe."""

    name: str = Field("run", max_length=NAME, pattern=r"^[A-Za-z0-9._-]+$")
    seed: int = Field(0, ge=0, lt=2**63)
    rounds: int = Field(ge=1, le=MANY)
    num_clients: int = Field(ge=1, le=MANY)
    cohort_size: int | None = Field(None, ge=1, le=MANY, description="clients a round; null = all")
    clients_in_memory: int | None = Field(
        None, ge=1, le=MANY, description="clients whose states a process holds at once, the others on disk; null = all"
    )
    method: Literal["fedkd", "fedavg", "fedprox", "scaffold", "feddropout", "local", "centralized"] = Field(
        "fedkd",
        description="local, centralized: teachers alone, nothing travels; fedavg, fedprox, scaffold: no teacher",
    )
    exchange: Literal["delta", "gradient_sum"] = Field(
        "delta", description="what a client sends: its student's change, or minus the sum of its gradients"
    )
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:[0-9]{1,4})?)$")
    stack: int = Field(
        1, ge=1, le=MANY, description="clients trained at once in a process, as one stacked network; for small ones"
    )
    compile: bool = Field(False, description="local training through torch.compile; on GPUs, CUDA graphs")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="bfloat16 = autocast in local training")
    threads_per_rank: Annotated[int, Field(ge=1, le=4096)] | Literal["auto"] = Field(
        1, description="at most a node's cores; auto = cores / ranks of the node: bits then depend on it"
    )
    balance: bool = Field(
        True, description="a node's processes train its clients together, not each its own; on CPUs, states in memory"
    )
    on_nonfinite: Literal["abort", "skip"] = "abort"
    task: str = Field("image_classification", pattern=PART)
    data: Data
    partition: Partition = Partition()
    teacher: Network | None = Field(None, description="the same architecture for every client")
    teachers: list[Network] | None = Field(
        None,
        min_length=1,
        max_length=1000,
        description="in place of teacher: a list of architectures, handed to the clients in turn",
    )
    student: Network
    optimizer: Optimizer = Optimizer()
    local: Local
    server: Server = Server()
    distillation: Distillation = Distillation()
    compression: Compression = Compression()
    evaluate: Evaluate = Evaluate()
    averaging: Averaging = Averaging()
    log: Log = Log()
    checkpoint: Checkpoint = Checkpoint()
    watchdog: Watchdog = Watchdog()
    time_limit: Annotated[float | None, BeforeValidator(seconds_of)] = Field(
        None, gt=0, le=YEARS, description="seconds or [D-]HH:MM:SS, within which the run stops with a checkpoint"
    )

    @model_validator(mode="after")
    def _cross_checks(self) -> Config:
        if (self.teacher is None) == (self.teachers is None):
            raise ValueError(
                "give one of teacher (all clients have the same) and teachers (a list, in turn); set the other to null"
            )
        if self.averages and self.averaging.network == "teacher" and len(self.architectures) > 1:
            raise ValueError(
                f"method={self.method} with averaging.network=teacher averages teachers, which takes one architecture:"
                " give teacher in place of teachers, or set averaging.network=student"
            )
        if self.cohort_size is not None and self.cohort_size > self.num_clients:
            raise ValueError(f"cohort_size ({self.cohort_size}) must not exceed num_clients ({self.num_clients})")
        if self.compression.error_feedback == "ef21" and self.server.weighting != "uniform":
            raise ValueError("compression.error_feedback=ef21 needs server.weighting=uniform")
        if self.stack > self.num_clients:
            raise ValueError(f"stack ({self.stack}) must not exceed num_clients ({self.num_clients})")
        if self.compile and self.stack > 1:
            raise ValueError("compile=true trains clients one at a time: set stack=1, or compile=false")
        if self.method == "centralized" and self.num_clients != 1:
            raise ValueError("method=centralized trains one model on all data: set num_clients=1")
        if self.method == "scaffold" and (self.server.weighting != "uniform" or self.server.buffers != "average"):
            raise ValueError("method=scaffold needs server.weighting=uniform and server.buffers=average")
        if self.method == "scaffold" and (self.exchange != "delta" or self.server.optimizer != "sgd"):
            raise ValueError("method=scaffold needs exchange=delta and server.optimizer=sgd")
        return self

    @property
    def averages(self) -> bool:
        """Whether the method trains and exchanges one network, with no teacher beside it."""
        return self.method not in ("fedkd", "local", "centralized")

    @property
    def cohort(self) -> int:
        """Clients that take part in a round."""
        return self.cohort_size or self.num_clients

    @property
    def architectures(self) -> list[Network]:
        """The teachers' architectures, one or more."""
        return self.teachers or [self.teacher]

    def architecture(self, client: int) -> int:
        """Return which of the architectures a client's teacher has: they are handed out in turn."""
        return client % len(self.architectures)

    def by_client(self, values: Sequence[int]) -> list[int]:
        """Return values given for each architecture as one for each client."""
        return [values[self.architecture(client)] for client in range(self.num_clients)]

    def network(self, role: str) -> Network:
        """Return the section of a network that is the same for all clients: the student, or the one teacher."""
        return self.student if role == "student" else self.architectures[0]

    def threshold(self, round_index: int) -> float:
        """Return the energy threshold T of a round (0-based): t_start at first, t_end in the last, linear between."""
        share = round_index / max(self.rounds - 1, 1)
        return self.compression.t_start + (self.compression.t_end - self.compression.t_start) * share

    def to_yaml(self) -> str:
        """Return the resolved configuration as YAML text that load() reads back."""
        return yaml_loader.dump(self.model_dump(mode="json"))

    def digest(self) -> str:
        """Return the SHA-256 of the resolved configuration, as hexadecimal text."""
        return hashlib.sha256(self.to_yaml().encode()).hexdigest()


def presets() -> Path:
    """Return the folder of the shipped configurations (inside the installed package, or beside it in a checkout)."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "configs"


def load(path: Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Return the configuration of a YAML file (default configs/digits.yaml) with KEY=VALUE overrides.

    A relative path that is no file here is that of a shipped configuration, with or without .yaml.

    Raises UserError with one line that names the key, and the nearest known key where it is unknown.
    """
    path = shipped(path or Path("digits.yaml"))
    try:
        tree = yaml_loader.read_mapping(path, "--config")
    except FileNotFoundError:
        known = ", ".join(sorted(str(file.relative_to(presets())) for file in presets().rglob("*.yaml")))
        raise UserError(f"cannot read --config {shown(path)}: there is none; shipped configurations: {known}") from None
    for override in overrides:
        apply(tree, override)
    return parse(tree)


def shipped(path: Path) -> Path:
    """Return the path of a shipped file, named with or without .yaml, where it is none from here; else the path."""
    if path.is_absolute() or os.path.lexists(path) or not path.name.strip("."):
        return path
    inside = presets() / path.with_suffix(".yaml")
    return inside if os.path.lexists(inside) else path


def parse(tree: dict[str, Any]) -> Config:
    """Return the configuration of a nested mapping; raises UserError as load() does."""
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        raise UserError(explain(error, _hint)) from None
    from fedkd_mpi import datasets, models

    def fill(network: Network, key: str) -> Network:
        options = models.check(network.name, network.options(), key)
        return Network(name=network.name, learning_rate=network.learning_rate, **options)

    filled = {key: fill(getattr(config, key), key) for key in ("teacher", "student") if getattr(config, key)}
    if config.teachers:
        filled["teachers"] = [fill(network, f"teachers.{index}") for index, network in enumerate(config.teachers)]
    data, own = config.data, datasets.check(config.data.name, config.data.options())
    filled["data"] = Data(name=data.name, root=data.root, augment=data.augment, **own)
    return config.model_copy(update=filled)


# Keys that change no bit: a resumed run may have other values.
CARE = ("checkpoint", "watchdog", "time_limit", "clients_in_memory", "balance")


def with_care(config: Config, overrides: Sequence[str]) -> Config:
    """Return the configuration with overrides of the keys in CARE; raises UserError on any other key."""
    tree = config.model_dump(mode="json")
    for override in overrides:
        key = override.partition("=")[0]
        if key.partition(".")[0] not in CARE:
            raise UserError(f"--resume takes {key} from the log: only {', '.join(CARE)} may be given anew")
        apply(tree, override)
    return parse(tree)


def apply(tree: dict[str, Any], text: str) -> None:
    """Put an override KEY=VALUE into a nested mapping; raises UserError where it is none."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"override '{shown(text)}' is not KEY=VALUE, for example rounds=50 or compression.t_end=0.99")
    if not re.fullmatch(r"[A-Za-z_][\w-]*(\.[A-Za-z_][\w-]*){0,9}", key, re.ASCII):
        raise UserError(f"override '{shown(text)}': '{shown(key)}' is no key: names with dots between them")
    *parents, last = key.split(".")
    for parent in parents:
        if not isinstance(tree.setdefault(parent, {}), dict):
            raise UserError(f"override '{shown(text)}': {parent} is not a section")
        tree = tree[parent]
    try:
        tree[last] = yaml_loader.parse_override(value)
    except ValueError as error:
        raise UserError(f"override '{shown(text)}': the value is not YAML: {error}") from None


def _keys(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _keys(kind, f"{prefix}{name}.")


def _hint(key: str) -> str:
    near = nearest(key, list(_keys()))
    return f"did you mean {near}?" if near else "--print-config shows all keys"
