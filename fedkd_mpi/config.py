"""The one configuration of a run: frozen, typed, YAML with dotted KEY=VALUE overrides; unknown keys are refused."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from fedkd_mpi.errors import UserError
from fedkd_mpi.registry import nearest


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Data(Section):
    name: str = Field(description="digits, mnist, fashion_mnist, cifar10, cifar100 or package.module:function")
    root: Path | None = Field(None, description="folder of the data sets; default $FEDKD_DATA")


class Partition(Section):
    kind: Literal["iid", "dirichlet", "pathological", "natural"] = "iid"
    alpha: float | None = Field(None, gt=0, description="Dirichlet concentration; small = each client sees few classes")
    classes_per_client: int | None = Field(None, ge=1, description="of the pathological partition")
    min_samples: int = Field(2, ge=2, description="fewest samples a client may hold")
    test_fraction: float = Field(0.2, gt=0, lt=1, description="of each client's own samples, kept for its local score")

    @model_validator(mode="after")
    def _kind_has_its_key(self) -> Partition:
        for kind, key in (("dirichlet", "alpha"), ("pathological", "classes_per_client")):
            if self.kind == kind and getattr(self, key) is None:
                raise ValueError(f"partition.kind={kind} needs partition.{key}")
            if self.kind != kind and getattr(self, key) is not None:
                raise ValueError(f"partition.{key} belongs to partition.kind={kind}, not {self.kind}")
        return self


class Network(BaseModel):
    """A teacher or a student; keys beyond these are the model's own and are checked by its family."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str = Field(description="mlp, cnn, resnet or package.module:Class")
    learning_rate: float = Field(gt=0)

    def options(self) -> dict[str, Any]:
        """Return the model's own keys."""
        return dict(self.model_extra or {})


class Optimizer(Section):
    name: Literal["sgd", "adam"] = "sgd"
    momentum: float = Field(0.0, ge=0, lt=1, description="of sgd")
    weight_decay: float = Field(0.0, ge=0)
    clip_norm: float | None = Field(
        None, gt=0, description="largest 2-norm of one network's gradient; null = no clipping"
    )

    @model_validator(mode="after")
    def _momentum_is_of_sgd(self) -> Optimizer:
        if self.name == "adam" and self.momentum:
            raise ValueError("optimizer.momentum belongs to optimizer.name=sgd; remove it or set it to 0")
        return self


class Local(Section):
    epochs: int | None = Field(None, ge=1, description="passes over the client's samples a round")
    steps: int | None = Field(None, ge=1, description="mini-batches a round, in place of epochs")
    batch_size: int = Field(32, ge=1)

    @model_validator(mode="after")
    def _epochs_or_steps(self) -> Local:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give one of local.epochs and local.steps (set the other to null)")
        return self


class Server(Section):
    learning_rate: float = Field(1.0, gt=0)
    weighting: Literal["uniform", "samples"] = "uniform"
    buffers: Literal["average", "local"] = Field(
        "average", description="BatchNorm statistics: exchanged, or kept local"
    )
    optimizer: Literal["sgd", "adam"] = Field("sgd", description="step on the mean of what clients sent; sgd adds it")


class Distillation(Section):
    adaptive: bool = Field(True, description="divide by L_t + L_s (equations 3-5)")
    logits: bool = Field(True, description="equations 3 and 4")
    hidden: bool = Field(True, description="hidden states of equation 5, through W_h")
    attention: bool = Field(True, description="attention maps of equation 5, where both models have them")
    floor: float = Field(0.5, gt=0, description="least value of the denominator L_t + L_s")
    shared_map: bool = Field(False, description="one W_h for all layer pairs (equal widths), not one each")


class Compression(Section):
    codec: str = Field(
        "svd",
        description="svd, rdsvd, none, float16, quantize, topk, powersgd, fetchsgd, submatrix or package.module:Codec",
    )
    t_start: float = Field(0.95, gt=0, le=1, description="energy threshold of the first round")
    t_end: float = Field(0.98, gt=0, le=1, description="energy threshold of the last round")
    error_feedback: Literal["none", "ef", "ef21"] = Field("none", description="what is lost is sent later; both legs")
    energy_scope: Literal["tensor", "model"] = Field(
        "tensor", description="of the threshold: each matrix, or the update"
    )
    byte_budget: int | None = Field(None, ge=1, description="largest payload of a message; sets the threshold")
    run_budget: int | None = Field(None, ge=1, description="largest uplink + downlink of the run, headers included")
    budget_growth: float | None = Field(None, gt=0, description="last round's share of run_budget / first's; default 1")
    bits: Literal[4, 8, 16] | None = Field(None, description="of quantize; default 8")
    density: float | None = Field(None, gt=0, le=1, description="share of entries of topk, fetchsgd; default 0.01")
    rank: int | None = Field(None, ge=1, description="of powersgd; default 4")
    sketch_rows: int | None = Field(None, ge=1, description="hash functions of fetchsgd; default 5")
    sketch_share: float | None = Field(None, gt=0, le=1, description="fetchsgd's sketch / update size; default 0.1")

    @model_validator(mode="after")
    def _rising(self) -> Compression:
        if self.t_start > self.t_end:
            raise ValueError(f"compression.t_start ({self.t_start}) must not exceed compression.t_end ({self.t_end})")
        return self

    @model_validator(mode="after")
    def _keys_belong_to_the_codec(self) -> Compression:
        owners = {
            "bits": ("quantize",),
            "density": ("topk", "fetchsgd"),
            "rank": ("powersgd",),
            "sketch_rows": ("fetchsgd",),
            "sketch_share": ("fetchsgd",),
            "byte_budget": ("svd", "rdsvd"),
            "run_budget": ("svd", "rdsvd"),
        }
        for key, codecs in owners.items():
            if getattr(self, key) is not None and self.codec not in codecs and ":" not in self.codec:
                named = " or ".join(codecs)
                raise ValueError(f"compression.{key} belongs to compression.codec={named}, not {self.codec}")
        if self.byte_budget is not None and self.run_budget is not None:
            raise ValueError("give one of compression.byte_budget (a message) and compression.run_budget (all of them)")
        if self.budget_growth is not None and self.run_budget is None:
            raise ValueError("compression.budget_growth says how compression.run_budget is spread; give that too")
        if self.energy_scope == "model" and (self.codec != "rdsvd" or self.error_feedback == "none"):
            raise ValueError(
                "compression.energy_scope=model needs compression.codec=rdsvd and compression.error_feedback=ef or"
                " ef21: layers with little energy would never be sent"
            )
        if self.codec == "fetchsgd" and self.error_feedback != "none":
            raise ValueError("compression.codec=fetchsgd keeps its own residual; set compression.error_feedback=none")
        return self


class Evaluate(Section):
    every: int = Field(1, ge=1, description="rounds between evaluations; the last round is always evaluated")
    global_teachers: bool = Field(False, description="score every teacher on the global test set after the last round")


class Averaging(Section):
    network: Literal["teacher", "student"] = Field(
        "student", description="architecture that fedavg, fedprox, feddropout and scaffold train and exchange"
    )
    proximal: float = Field(0.01, ge=0, description="mu of fedprox: loss + mu/2 |w - w_global|^2")
    keep: float = Field(0.75, gt=0, le=1, description="share of every hidden layer's units that feddropout trains")


class Log(Section):
    spectra: bool = Field(False, description="keep the singular values of every update, for report --energy")


class Checkpoint(Section):
    every: int | None = Field(10, ge=1, description="rounds between checkpoints; null = only if the run stops early")


class Watchdog(Section):
    seconds: float = Field(600.0, gt=0, description="without progress, after which missing processes are named")
    abort_seconds: float | None = Field(None, gt=0, description="after which the run is ended; null = 3 times as long")

    @model_validator(mode="after")
    def _warns_first(self) -> Watchdog:
        if self.abort_seconds is not None and self.abort_seconds < self.seconds:
            raise ValueError("watchdog.abort_seconds must not be less than watchdog.seconds")
        return self


def _seconds(value: Any) -> Any:
    """Return the seconds of [D-]HH:MM:SS as Slurm writes them; of anything else, the thing itself."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", value) if isinstance(value, str) else None
    if match is None:
        return value
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


class Config(Section):
    """Everything that decides the bits of a run, apart from the build and the data files, and how it is kept safe."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9._-]+$")
    seed: int = Field(0, ge=0)
    rounds: int = Field(ge=1)
    num_clients: int = Field(ge=1)
    cohort_size: int | None = Field(None, ge=1, description="clients a round; null = all")
    method: Literal["fedkd", "fedavg", "fedprox", "scaffold", "feddropout", "local", "centralized"] = Field(
        "fedkd",
        description="local, centralized: teachers alone, nothing travels; fedavg, fedprox, scaffold: no teacher",
    )
    exchange: Literal["delta", "gradient_sum"] = Field(
        "delta", description="what a client sends: its student's change, or minus the sum of its gradients"
    )
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="bfloat16 = autocast in local training")
    threads_per_rank: int | Literal["auto"] = Field(
        1, description="auto = cores / ranks of the node: bits then depend on it"
    )
    on_nonfinite: Literal["abort", "skip"] = "abort"
    task: str = "image_classification"
    data: Data
    partition: Partition = Partition()
    teacher: Network
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
    time_limit: Annotated[float | None, BeforeValidator(_seconds)] = Field(
        None, gt=0, description="seconds or [D-]HH:MM:SS, within which the run stops with a checkpoint"
    )

    @model_validator(mode="after")
    def _cross_checks(self) -> Config:
        if self.cohort_size is not None and self.cohort_size > self.num_clients:
            raise ValueError(f"cohort_size ({self.cohort_size}) must not exceed num_clients ({self.num_clients})")
        if self.compression.error_feedback == "ef21" and self.server.weighting != "uniform":
            raise ValueError("compression.error_feedback=ef21 needs server.weighting=uniform")
        if isinstance(self.threads_per_rank, int) and self.threads_per_rank < 1:
            raise ValueError("threads_per_rank must be a positive number or auto")
        if self.method == "centralized" and self.num_clients != 1:
            raise ValueError("method=centralized trains one model on all data: set num_clients=1")
        if self.method == "scaffold" and (self.server.weighting != "uniform" or self.server.buffers != "average"):
            raise ValueError("method=scaffold needs server.weighting=uniform and server.buffers=average")
        if self.method == "scaffold" and (self.exchange != "delta" or self.server.optimizer != "sgd"):
            raise ValueError("method=scaffold needs exchange=delta and server.optimizer=sgd")
        return self

    @property
    def cohort(self) -> int:
        """Clients that take part in a round."""
        return self.cohort_size or self.num_clients

    def threshold(self, round_index: int) -> float:
        """Return the energy threshold T of a round (0-based): t_start at first, t_end in the last, linear between."""
        share = round_index / max(self.rounds - 1, 1)
        return self.compression.t_start + (self.compression.t_end - self.compression.t_start) * share

    def to_yaml(self) -> str:
        """Return the resolved configuration as YAML text that load() reads back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    def digest(self) -> str:
        """Return the SHA-256 of the resolved configuration, as hexadecimal text."""
        return hashlib.sha256(self.to_yaml().encode()).hexdigest()


def presets() -> Path:
    """Return the folder of the shipped configurations (inside the installed package, or beside it in a checkout)."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "configs"


def load(path: Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Return the configuration of a YAML file (default configs/digits.yaml) with KEY=VALUE overrides.

    A bare name that is no file here is that of a shipped configuration, with or without .yaml.

    Raises UserError with one line that names the key, and the nearest known key where it is unknown.
    """
    path = path or Path("digits.yaml")
    if path.name == str(path) and not path.exists():
        shipped = presets() / path.with_suffix(".yaml")
        path = shipped if shipped.exists() else path
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        known = ", ".join(sorted(file.name for file in presets().glob("*.yaml")))
        raise UserError(f"cannot read --config {path}: {error.strerror}; shipped configurations: {known}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise UserError(f"--config {path} must be a mapping of keys to values")
    for override in overrides:
        _override(tree, override)
    return parse(tree)


def parse(tree: dict[str, Any]) -> Config:
    """Return the configuration of a nested mapping; raises UserError as load() does."""
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        raise UserError("; ".join(_explain(item) for item in error.errors())) from None
    from fedkd_mpi import models

    filled = {}
    for key in ("teacher", "student"):
        network = getattr(config, key)
        options = models.check(network.name, network.options(), key)
        filled[key] = Network(name=network.name, learning_rate=network.learning_rate, **options)
    return config.model_copy(update=filled)


CARE = ("checkpoint", "watchdog", "time_limit")  # keys that change no bit: a resumed run may have other values


def with_care(config: Config, overrides: Sequence[str]) -> Config:
    """Return the configuration with overrides of the keys in CARE; raises UserError on any other key."""
    tree = config.model_dump(mode="json")
    for override in overrides:
        key = override.partition("=")[0]
        if key.partition(".")[0] not in CARE:
            raise UserError(f"--resume takes {key} from the log: only {', '.join(CARE)} may be given anew")
        _override(tree, override)
    return parse(tree)


def _override(tree: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"override {text!r} is not KEY=VALUE, for example rounds=50 or compression.t_end=0.99")
    *parents, last = key.split(".")
    for parent in parents:
        if not isinstance(tree.setdefault(parent, {}), dict):
            raise UserError(f"override {text!r}: {parent} is not a section")
        tree = tree[parent]
    try:
        tree[last] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise UserError(f"override {text!r}: the value is not YAML") from None


def _keys(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _keys(kind, f"{prefix}{name}.")


def _explain(error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        near = nearest(key, list(_keys()))
        return f"unknown key {key}" + (f"; did you mean {near}?" if near else "; --print-config shows all keys")
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "missing":
        return f"{key} is missing"
    return message if error["type"] == "value_error" else f"{key}={error['input']}: {message}"
