"""The sections of the configuration: typed, frozen, each checking what concerns it alone.

Every number has a lower and an upper bound, is finite, and is never taken from true, false or text. The upper bounds
are far above what anybody runs: they are what counters, single precision and the system can hold.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fedkd_mpi.common.options import STRICT, WIDE

MANY = 10**7  # clients, rounds, samples, steps: what is made a list of
BYTES = 2**62  # what sums of int64 can hold
TINY, HUGE = 1e-30, 1e30  # factors: what single precision holds
YEARS = 1e8  # seconds
NAME = 200  # characters of a name: a file's has 255 bytes, with a date, a seed and suffixes behind it
PART = r"^[\w.:-]{1,200}$"  # of this package, or package.module:Name


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", **STRICT)


class DataConfig(BaseModel):
    """A data set; keys beyond these are its own and are checked by it."""

    model_config = ConfigDict(extra="allow", **STRICT)
    name: str = Field(
        pattern=PART, description="of a data set (docs/images.md, docs/tasks.md), or package.module:function"
    )
    root: Annotated[Path | None, Field(strict=False)] = Field(
        None, description="folder of the data sets; default $FEDKD_DATA"
    )
    augment: bool = Field(False, description="vary the training samples at random, as the task knows how to")

    def options(self) -> dict[str, Any]:
        """Return the data set's own keys."""
        return dict(self.model_extra or {})


class PartitionConfig(Section):
    kind: Literal["iid", "dirichlet", "pathological", "natural"] = "iid"
    alpha: float | None = Field(
        None, ge=1e-4, le=1e8, description="Dirichlet concentration; small = each client sees few classes"
    )
    classes_per_client: int | None = Field(None, ge=1, le=WIDE, description="of the pathological partition")
    min_samples: int = Field(2, ge=2, le=MANY, description="fewest samples a client may hold")
    test_fraction: float = Field(0.2, gt=0, lt=1, description="of each client's own samples, kept for its local score")

    @model_validator(mode="after")
    def _kind_has_its_key(self) -> PartitionConfig:
        for kind, key in (("dirichlet", "alpha"), ("pathological", "classes_per_client")):
            if self.kind == kind and getattr(self, key) is None:
                raise ValueError(f"partition.kind={kind} needs partition.{key}")
            if self.kind != kind and getattr(self, key) is not None:
                raise ValueError(f"partition.{key} belongs to partition.kind={kind}, not {self.kind}")
        return self


class NetworkConfig(BaseModel):
    """A teacher or a student; keys beyond these are the model's own and are checked by its family."""

    model_config = ConfigDict(extra="allow", **STRICT)
    name: str = Field(pattern=PART, description="mlp, cnn, resnet, bert or package.module:Class")
    learning_rate: float = Field(ge=TINY, le=HUGE)

    def options(self) -> dict[str, Any]:
        """Return the model's own keys."""
        return dict(self.model_extra or {})


class OptimizerConfig(Section):
    name: Literal["sgd", "adam"] = "sgd"
    momentum: float = Field(0.0, ge=0, lt=1, description="of sgd")
    weight_decay: float = Field(0.0, ge=0, le=HUGE)
    clip_norm: float | None = Field(
        None, ge=TINY, le=HUGE, description="largest 2-norm of one network's gradient; null = no clipping"
    )

    @model_validator(mode="after")
    def _momentum_is_of_sgd(self) -> OptimizerConfig:
        if self.name == "adam" and self.momentum:
            raise ValueError("optimizer.momentum belongs to optimizer.name=sgd; remove it or set it to 0")
        return self


class LocalConfig(Section):
    epochs: int | None = Field(None, ge=1, le=MANY, description="passes over the client's samples a round")
    steps: int | None = Field(None, ge=1, le=10**9, description="mini-batches a round, in place of epochs")
    batch_size: int = Field(32, ge=1, le=MANY)

    @model_validator(mode="after")
    def _epochs_or_steps(self) -> LocalConfig:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give one of local.epochs and local.steps (set the other to null)")
        return self


class FedAdam(NamedTuple):
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3


class ServerConfig(Section):
    learning_rate: float = Field(1.0, ge=TINY, le=HUGE)
    weighting: Literal["uniform", "samples"] = "uniform"
    buffers: Literal["average", "local"] = Field(
        "average", description="BatchNorm statistics: exchanged, or kept local"
    )
    optimizer: Literal["sgd", "fedadam"] = Field(
        "sgd", description="step on the mean of what clients sent; sgd adds it"
    )
    beta1: float | None = Field(None, ge=0, lt=1, description="of fedadam's first moment; default 0.9")
    beta2: float | None = Field(None, ge=0, lt=1, description="of fedadam's second moment; default 0.99")
    tau: float | None = Field(None, ge=1e-12, le=1e3, description="of fedadam: its adaptivity; default 1e-3")

    @property
    def rates(self) -> FedAdam:
        """Return fedadam's constants (defaults of Reddi et al. 2021)."""
        own = FedAdam()
        return FedAdam(*(getattr(own, k) if getattr(self, k) is None else getattr(self, k) for k in own._fields))

    @model_validator(mode="after")
    def _keys_belong_to_the_optimizer(self) -> ServerConfig:
        for key in FedAdam._fields:
            if getattr(self, key) is not None and self.optimizer != "fedadam":
                raise ValueError(f"server.{key} belongs to server.optimizer=fedadam, not {self.optimizer}")
        if self.optimizer == "fedadam" and "learning_rate" not in self.model_fields_set:
            raise ValueError("server.optimizer=fedadam needs server.learning_rate, a step of the weights (say 0.01)")
        return self


class DistillationConfig(Section):
    adaptive: bool = Field(True, description="divide by L_t + L_s (equations 3-5)")
    logits: bool = Field(True, description="equations 3 and 4")
    hidden: bool = Field(True, description="hidden states of equation 5, through W_h")
    attention: bool = Field(True, description="attention maps of equation 5, where both models have them")
    floor: float = Field(0.5, ge=TINY, le=HUGE, description="least value of the denominator L_t + L_s")
    shared_map: bool = Field(False, description="one W_h for all layer pairs (equal widths), not one each")


class CompressionConfig(Section):
    codec: str = Field(
        "svd",
        pattern=PART,
        description="svd, rdsvd, none, float16, quantize, topk, powersgd, fetchsgd, submatrix or package.module:Codec",
    )
    t_start: float = Field(0.95, gt=0, le=1, description="energy threshold of the first round")
    t_end: float = Field(0.98, gt=0, le=1, description="energy threshold of the last round")
    error_feedback: Literal["none", "ef", "ef21"] = Field("none", description="what is lost is sent later; both legs")
    energy_scope: Literal["tensor", "model"] = Field(
        "tensor", description="of the threshold: each matrix, or the update"
    )
    byte_budget: int | None = Field(
        None, ge=1, le=BYTES, description="largest payload of a message; sets the threshold"
    )
    run_budget: int | None = Field(
        None, ge=1, le=BYTES, description="largest uplink + downlink of the run, headers included"
    )
    budget_growth: float | None = Field(
        None, ge=1e-6, le=1e6, description="last round's share of run_budget / first's; default 1"
    )
    warm_start: bool | None = Field(
        None, description="svd: factorise from last round's directions, faster, K up to some % above the smallest"
    )
    bits: Literal[4, 8, 16] | None = Field(None, description="of quantize; default 8")
    density: float | None = Field(None, gt=0, le=1, description="share of entries of topk, fetchsgd; default 0.01")
    rank: int | None = Field(None, ge=1, le=WIDE, description="of powersgd; default 4")
    sketch_rows: int | None = Field(None, ge=1, le=1000, description="hash functions of fetchsgd; default 5")
    sketch_share: float | None = Field(None, gt=0, le=1, description="fetchsgd's sketch / update size; default 0.5")

    @model_validator(mode="after")
    def _rising(self) -> CompressionConfig:
        if self.t_start > self.t_end:
            raise ValueError(f"compression.t_start ({self.t_start}) must not exceed compression.t_end ({self.t_end})")
        return self

    @model_validator(mode="after")
    def _keys_belong_to_the_codec(self) -> CompressionConfig:
        owners = {
            "warm_start": ("svd",),
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


class EvaluateConfig(Section):
    every: int = Field(1, ge=1, le=MANY, description="rounds between evaluations; the last round is always evaluated")
    global_teachers: bool = Field(False, description="score every teacher on the global test set after the last round")


class AveragingConfig(Section):
    network: Literal["teacher", "student"] = Field(
        "student", description="architecture that methods without a teacher train and exchange"
    )
    proximal: float = Field(0.01, ge=0, le=HUGE, description="mu of fedprox: loss + mu/2 |w - w_global|^2")
    keep: float = Field(0.75, gt=0, le=1, description="share of every hidden layer's units that feddropout trains")


class LogConfig(Section):
    spectra: bool = Field(False, description="keep the singular values of every update, for report --energy")


class CheckpointConfig(Section):
    every: int | None = Field(
        10, ge=1, le=MANY, description="rounds between checkpoints; null = only if the run stops early"
    )


class WatchdogConfig(Section):
    seconds: float = Field(
        600.0, ge=0.01, le=YEARS, description="without progress, after which missing processes are named"
    )
    abort_seconds: float | None = Field(
        None, ge=0.01, le=YEARS, description="after which the run is ended; null = 3 times as long"
    )

    @model_validator(mode="after")
    def _warns_first(self) -> WatchdogConfig:
        if self.abort_seconds is not None and self.abort_seconds < self.seconds:
            raise ValueError("watchdog.abort_seconds must not be less than watchdog.seconds")
        return self


def seconds_of(value: Any) -> Any:
    """Return the seconds of [D-]HH:MM:SS as Slurm writes them; of what is no text, the thing itself."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"(?:([0-9]{1,4})-)?([0-9]{1,6}):([0-5][0-9]):([0-5][0-9])", value)
    if match is None:
        raise ValueError("must be a number of seconds, or [D-]HH:MM:SS")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
