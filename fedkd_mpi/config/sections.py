"""The sections of the configuration: typed and frozen, each with the checks of its own keys.

Every number is finite and has a lower and an upper bound; true, false and text are not converted to numbers. The upper
bounds are far above practical values: they are limits of counters, of single precision and of the system.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from fedkd_mpi.common.options import WIDE, Strict
from fedkd_mpi.common.registry import nearest
from fedkd_mpi.config import methods
from fedkd_mpi.models.options import spelled_out

MANY = 10**7  # clients, rounds, samples, steps: what is made a list of
BYTES = 2**62  # what sums of int64 can hold
TINY, HUGE = 1e-30, 1e30  # factors: what single precision holds
YEARS = 1e8  # seconds
NAME = 200  # characters of a name; file names of up to 255 bytes also contain a date, a seed and suffixes
SHA256 = r"^[0-9a-f]{64}$"
PART = r"^[\w.:-]{1,200}$"  # a name of this package, or package.module:Name


class Section(Strict):
    model_config = ConfigDict(extra="forbid")


class DataConfig(Strict):
    """A data set; all other keys are options of the data set, which validates them."""

    model_config = ConfigDict(extra="allow")
    name: str = Field(
        pattern=PART,
        description="the data set (docs/images.md, docs/tasks.md, docs/own-data.md)",
    )
    root: Annotated[Path | None, Field(strict=False)] = Field(
        None, description="folder of the data sets; default $FEDKD_DATA"
    )
    augment: bool = Field(False, description="random augmentation of the training samples, as the task defines it")
    pooled: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="training and test part become one, of which this share is the global test set; 0: the clients' own"
        " test samples together are; null: the official parts (docs/configuration.md)",
    )
    pixels: Literal["standardised", "half"] = Field(
        "standardised", description="of images: mean 0 and deviation 1 over the training part, or half: (x - 0.5) / 0.5"
    )

    def options(self) -> dict[str, Any]:
        """Return the options of the data set."""
        return dict(self.model_extra or {})


KIND_OF = {"alpha": "dirichlet", "classes_per_client": "pathological", "path": "file"}  # keys that one kind needs
MAY_HAVE = {"balanced": "dirichlet", "unbalanced": "pathological"}  # and keys that it may have


KINDS = ("iid", "dirichlet", "pathological", "natural", "file")


class PartitionConfig(Section):
    kind: str = Field(
        "iid",
        pattern=PART,
        description="iid, dirichlet, pathological, natural (the data's own owners), file (as partition.path says)"
        " or package.module:function",
    )
    alpha: float | None = Field(
        None, ge=1e-4, le=1e8, description="Dirichlet concentration; small = each client sees few classes"
    )
    balanced: bool | None = Field(
        None, description="dirichlet: a client that holds its share of all samples gets none of the next class"
    )
    classes_per_client: int | None = Field(None, ge=1, le=WIDE, description="for the pathological partition")
    unbalanced: bool | None = Field(None, description="pathological: shares of a class are of random sizes")
    path: str | None = Field(
        None, min_length=1, max_length=1000, description="JSON or npz file for kind=file (docs/own-data.md)"
    )
    min_samples: int = Field(2, ge=2, le=MANY, description="smallest number of samples per client; not for kind=file")
    test_fraction: float = Field(
        0.2, gt=0, lt=1, description="share of each client's samples for its local score; not for kind=file"
    )

    options: dict[str, Any] | None = Field(None, description="options of a partitioner of a user's own")

    @model_validator(mode="after")
    def _kind_is_known(self) -> PartitionConfig:
        if self.kind not in KINDS and ":" not in self.kind:
            near = nearest(self.kind, KINDS)
            hint = f"did you mean {near}?" if near else f"known are {', '.join(KINDS)} and package.module:function"
            raise ValueError(f"partition.kind={self.kind} is unknown; {hint}")
        if self.options is not None and ":" not in self.kind:
            raise ValueError(f"partition.options belongs to a partitioner of a user's own, not to {self.kind}")
        return self

    @model_validator(mode="after")
    def _kind_has_its_key(self) -> PartitionConfig:
        for key, kind in KIND_OF.items():
            if self.kind == kind and getattr(self, key) is None:
                raise ValueError(f"partition.kind={kind} needs partition.{key}")
        for key, kind in (KIND_OF | MAY_HAVE).items():
            if self.kind != kind and getattr(self, key) is not None:
                raise ValueError(f"partition.{key} belongs to partition.kind={kind}, not {self.kind}")
        return self


class NetworkConfig(Strict):
    """A teacher or a student; all other keys are options of the model family, which validates them."""

    model_config = ConfigDict(extra="allow")
    name: str = Field(
        pattern=PART,
        description="model family, the other keys of the section are its options; or torchvision:NAME, hf:FOLDER",
    )
    learning_rate: float = Field(ge=TINY, le=HUGE, description="learning rate of the network; a teacher's also of W_h")
    features: list[Annotated[str, Field(min_length=1, max_length=NAME)]] | None = Field(
        None,
        min_length=1,
        max_length=1000,
        description="layers whose outputs are the hidden features of an own model that returns logits alone",
    )

    @model_validator(mode="before")
    @classmethod
    def _from_short_name(cls, value: Any) -> Any:
        return spelled_out(value)

    def options(self) -> dict[str, Any]:
        """Return the options of the model."""
        return dict(self.model_extra or {})


class TaskConfig(Strict):
    """A task by its name, or a mapping of its name and its options; text stands for a task without options."""

    model_config = ConfigDict(extra="allow")
    section: ClassVar[str] = "task"
    name: str = Field(pattern=PART)

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_serializer(mode="wrap")
    def _to_name(self, serialize: SerializerFunctionWrapHandler) -> Any:
        return serialize(self) if self.model_extra else self.name

    @model_validator(mode="after")
    def _built_in_ones_have_their_options(self) -> TaskConfig:
        known = methods.METHODS[self.name].options if self.name in methods.METHODS else ()
        unknown = [] if ":" in self.name else [key for key in self.options() if key not in known]
        if unknown:
            raise ValueError(f"{self.section}={self.name} has no option {unknown[0]}")
        return self

    def options(self) -> dict[str, Any]:
        """Return the options of the task or method."""
        return dict(self.model_extra or {})


class MethodConfig(TaskConfig):
    """A method, written in the same way."""

    section = "method"
    name: Annotated[str, AfterValidator(methods.known)] = Field(pattern=PART)

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": methods.known(value)} if isinstance(value, str) else value


class LocalConfig(Section):
    epochs: int | None = Field(None, ge=1, le=MANY, description="passes over the client's samples per round")
    steps: int | None = Field(None, ge=1, le=10**9, description="mini-batches per round, instead of epochs")
    batch_size: int = Field(32, ge=1, le=MANY, description="samples per mini-batch")
    shuffle: bool = Field(
        True, description="a new order of the samples in every epoch; false: one order per client for the whole run"
    )
    drop_last: bool = Field(False, description="leave out an epoch's last mini-batch where it is not full")
    accumulate: int = Field(
        1, ge=1, le=MANY, description="mini-batches per optimiser step, which is taken with their mean gradient"
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="share of each label that is spread over all classes, in training alone"
    )

    @model_validator(mode="after")
    def _epochs_or_steps(self) -> LocalConfig:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give one of local.epochs and local.steps (set the other to null)")
        return self


class DistillationConfig(Section):
    adaptive: bool = Field(True, description="divide by L_t + L_s (equations 3-5)")
    logits: bool = Field(True, description="equations 3 and 4")
    hidden: bool = Field(True, description="hidden states of equation 5, through W_h")
    attention: bool = Field(True, description="attention maps of equation 5, if both models have them")
    floor: float = Field(0.5, ge=TINY, le=HUGE, description="lower bound of the denominator L_t + L_s")
    shared_map: bool = Field(False, description="one W_h for all layer pairs (equal widths) instead of one per pair")


class EvaluateConfig(Section):
    every: int = Field(1, ge=1, le=MANY, description="rounds between evaluations; the last round is always evaluated")
    metrics: list[Annotated[str, Field(pattern=PART)]] = Field(
        [], max_length=100, description="further metrics beside the task's, each package.module:Class"
    )
    global_teachers: bool = Field(False, description="score every teacher on the global test set after the last round")


class AveragingConfig(Section):
    network: Literal["teacher", "student"] = Field(
        "student", description="architecture that methods without a teacher train and exchange"
    )
    proximal: float = Field(0.01, ge=0, le=HUGE, description="mu of fedprox: loss + mu/2 |w - w_global|^2")
    keep: float = Field(0.75, gt=0, le=1, description="share of every hidden layer's units that feddropout trains")


class LogConfig(Section):
    spectra: bool = Field(False, description="log the singular values of every update, for report --energy")


class CheckpointConfig(Section):
    every: int | None = Field(
        10, ge=1, le=MANY, description="rounds between checkpoints; null = only if the run stops early"
    )
    last: bool = Field(
        True, description="one after the last round too, from which networks are exported and the run can be extended"
    )
    best: Literal["none", "student", "all"] = Field(
        "student",
        description="networks of the best round by the task's first metric, kept apart: none, the global student (by"
        " the server alone, while clients train), or teachers as well (all wait whenever the score rises)",
    )


class InitConfig(Section):
    """Where networks start, in place of random weights; the digests are those of the files, and are filled in."""

    student: Path | None = Field(
        None, strict=False, description="safetensors file of the exchanged network: an export or a state_dict"
    )
    teacher: Path | None = Field(None, strict=False, description="the same of every client's teacher")
    student_digest: str | None = Field(None, pattern=SHA256, description="SHA-256 of the file init.student")
    teacher_digest: str | None = Field(None, pattern=SHA256, description="SHA-256 of the file init.teacher")

    @model_validator(mode="after")
    def _digests_are_of_files(self) -> InitConfig:
        for role in ("student", "teacher"):
            if getattr(self, f"{role}_digest") and getattr(self, role) is None:
                raise ValueError(f"init.{role}_digest is of a file: give init.{role} too")
        return self


class WatchdogConfig(Section):
    seconds: float = Field(
        600.0, ge=0.01, le=YEARS, description="seconds without progress after which missing processes are named"
    )
    abort_seconds: float | None = Field(
        None, ge=0.01, le=YEARS, description="seconds without progress after which the run ends; null = 3 * seconds"
    )

    @model_validator(mode="after")
    def _warns_first(self) -> WatchdogConfig:
        if self.abort_seconds is not None and self.abort_seconds < self.seconds:
            raise ValueError("watchdog.abort_seconds must not be less than watchdog.seconds")
        return self


def seconds_of(value: Any) -> Any:
    """Return the seconds of a text [D-]HH:MM:SS, as Slurm writes it; other values are returned unchanged."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"(?:([0-9]{1,4})-)?([0-9]{1,6}):([0-5][0-9]):([0-5][0-9])", value)
    if match is None:
        raise ValueError("must be a number of seconds, or [D-]HH:MM:SS")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
