"""The sections of the optimisers: of the local training, of its learning rates over the rounds, and of the server."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, Field, model_validator

from fedkd_mpi.common.registry import known_or_own
from fedkd_mpi.config.sections import HUGE, MANY, NAME, PART, TINY, Section

Decay = Annotated[float, Field(ge=0, lt=1)]

OPTIMIZERS = ("sgd", "adam", "adamw")
OPTIMIZERS_OF = {  # optimizer.name by the keys that belong to some alone
    "momentum": ("sgd",),
    "nesterov": ("sgd",),
    "betas": ("adam", "adamw"),
    "eps": ("adam", "adamw"),
    "weight_decay": OPTIMIZERS,
}
SCHEDULES = ("constant", "step", "cosine")


def _optimizer(name: str) -> str:
    """Return the name of an optimiser, that of torch.optim.NAME as package.module:Name."""
    if name.startswith("torch.optim.") and ":" not in name:
        module, _, last = name.rpartition(".")
        name = f"{module}:{last}"
    return known_or_own(name, OPTIMIZERS)


def _schedule(name: str) -> str:
    return known_or_own(name, SCHEDULES)


class OptimizerConfig(Section):
    name: Annotated[str, AfterValidator(_optimizer)] = Field(
        "sgd",
        pattern=PART,
        description="optimiser of the local training, as in torch.optim: sgd, adam, adamw; any other by its path,"
        " torch.optim.NAME or package.module:Class (docs/own-methods.md)",
    )
    momentum: float = Field(0.0, ge=0, lt=1, description="for sgd")
    nesterov: bool = Field(False, description="for sgd: Nesterov's momentum, as in torch.optim.SGD")
    betas: list[Decay] | None = Field(
        None, min_length=2, max_length=2, description="adam, adamw: decays of both moments; default [0.9, 0.999]"
    )
    eps: float | None = Field(None, ge=TINY, le=HUGE, description="adam, adamw: added to the root; default 1e-8")
    weight_decay: float = Field(
        0.0, ge=0, le=HUGE, description="sgd, adam: added to the gradient; adamw: apart from it"
    )
    options: dict[str, Any] | None = Field(
        None, description="of an optimiser that is named by its path: its arguments beside params and lr"
    )
    renew: bool = Field(False, description="a new optimiser, without momentum and moments, in every round")
    clip_norm: float | None = Field(
        None, ge=TINY, le=HUGE, description="largest 2-norm of one network's gradient; null = no clipping"
    )

    @model_validator(mode="after")
    def _keys_belong_to_the_name(self) -> OptimizerConfig:
        for key, off in (("momentum", "0"), ("nesterov", "false")):
            if self.name != "sgd" and getattr(self, key):
                raise ValueError(f"optimizer.{key} belongs to optimizer.name=sgd; remove it or set it to {off}")
        for key in ("betas", "eps"):
            if self.name not in OPTIMIZERS_OF[key] and getattr(self, key) is not None:
                raise ValueError(f"optimizer.{key} belongs to optimizer.name=adam or adamw, not {self.name}")
        if ":" in self.name and self.weight_decay:
            raise ValueError(f"optimizer.weight_decay of {self.name} belongs into optimizer.options")
        if ":" not in self.name and self.options is not None:
            raise ValueError(f"optimizer.options belongs to torch.optim.NAME or package.module:Class, not {self.name}")
        if self.nesterov and not self.momentum:
            raise ValueError("optimizer.nesterov=true needs optimizer.momentum above 0")
        return self


class ScheduleConfig(Section):
    name: Annotated[str, AfterValidator(_schedule)] = Field(
        "constant",
        pattern=PART,
        description="learning rates over the run, as torch.optim.lr_scheduler has them: constant, step, cosine; or"
        " package.module:function (docs/own-methods.md)",
    )
    every: Literal["round", "step"] = Field(
        "round", description="when the rates change: from round to round, or from one optimiser step to the next"
    )
    warmup_rounds: int = Field(0, ge=0, le=MANY, description="first rounds, in which the rates rise in equal steps")
    warmup_steps: int | None = Field(
        None, ge=0, le=10**9, description="every=step: in place of warmup_rounds, so many first steps"
    )
    step_rounds: int | None = Field(None, ge=1, le=MANY, description="step: rounds between two falls of the rates")
    step_steps: int | None = Field(
        None, ge=1, le=10**9, description="step, every=step: in place of step_rounds, so many steps"
    )
    gamma: float | None = Field(None, ge=TINY, le=1, description="step: factor of each fall; default 0.1")
    minimum: float | None = Field(None, ge=0, le=1, description="cosine: final share of the rates; default 0")

    @model_validator(mode="after")
    def _keys_belong_to_the_name(self) -> ScheduleConfig:
        of = (("step_rounds", "step"), ("step_steps", "step"), ("gamma", "step"), ("minimum", "cosine"))
        for key, name in of:
            if getattr(self, key) is not None and self.name != name:
                raise ValueError(f"schedule.{key} belongs to schedule.name={name}, not {self.name}")
        if self.name == "step" and (self.step_rounds is None) == (self.step_steps is None):
            raise ValueError("schedule.name=step needs one of schedule.step_rounds and schedule.step_steps")
        return self

    @model_validator(mode="after")
    def _steps_are_counted(self) -> ScheduleConfig:
        for key in ("warmup_steps", "step_steps"):
            if getattr(self, key) is not None and self.every != "step":
                raise ValueError(f"schedule.{key} needs schedule.every=step")
        if self.warmup_steps and self.warmup_rounds:
            raise ValueError("give one of schedule.warmup_rounds and schedule.warmup_steps")
        if ":" in self.name and (self.warmup_rounds or self.warmup_steps):
            raise ValueError(f"schedule.name={self.name} is the whole schedule: a warm-up belongs into it")
        return self

    def factor(self, round_index: int, rounds: int, step: int = 0, steps: int = 1) -> float:
        """Return the factor on the learning rates in a step of a round, both 0-based, of a client with so many steps.

        With every=round there is one step per round. Steps are counted over the run as if the client trained in every
        round. With W warm-up steps, step s < W has (s + 1) / (W + 1), and step W has 1. The others equal StepLR and
        CosineAnnealingLR(T_max = all steps - W) of torch, counted from step W on.
        """
        now, warmup = round_index * steps + step, self.warmup_steps or self.warmup_rounds * steps
        if now < warmup:
            return (now + 1) / (warmup + 1)
        if self.name == "step":
            falls = (now - warmup) // (self.step_steps or (self.step_rounds or 1) * steps)
            return float((0.1 if self.gamma is None else self.gamma) ** falls)
        if self.name == "cosine":
            least, share = self.minimum or 0.0, (now - warmup) / (rounds * steps - warmup)
            return least + (1 - least) * (1 + math.cos(math.pi * share)) / 2
        return 1.0


class StopConfig(Section):
    metric: str | None = Field(
        None,
        min_length=1,
        max_length=NAME,
        description="early stopping: a metric of the task or of evaluate.metrics, or a score or loss of docs/hdf5.md's"
        " rounds; null = all rounds are run",
    )
    patience: int = Field(
        10, ge=1, le=MANY, description="evaluations in a row without a better value, after which the run ends"
    )
    min_delta: float = Field(0.0, ge=0, le=HUGE, description="by how much a value must exceed the best to be better")

    @model_validator(mode="after")
    def _keys_have_a_metric(self) -> StopConfig:
        for key in ("patience", "min_delta"):
            if self.metric is None and getattr(self, key) != StopConfig.model_fields[key].default:
                raise ValueError(f"stop.{key} needs stop.metric")
        return self


class Adaptive(NamedTuple):
    beta1: float
    beta2: float
    tau: float


ADAPTIVE = {  # with the values of Reddi et al. 2021
    "fedadagrad": Adaptive(0.0, 0.0, 1e-3),
    "fedadam": Adaptive(0.9, 0.99, 1e-3),
    "fedyogi": Adaptive(0.9, 0.99, 1e-3),
}
OWNERS = {  # server.optimizer by the keys that belong to some alone
    "momentum": ("sgd",),
    "beta1": tuple(ADAPTIVE),
    "beta2": ("fedadam", "fedyogi"),
    "tau": tuple(ADAPTIVE),
}


class ServerConfig(Section):
    learning_rate: float = Field(
        1.0, ge=TINY, le=HUGE, description="factor on the mean update; of the adaptive optimisers the step"
    )
    weighting: Literal["uniform", "samples"] = Field(
        "uniform", description="weights of the clients in the mean: equal, or by their samples"
    )
    aggregator: str = Field(
        "mean", pattern=PART, description="mean of the updates, or package.module:function, which gets all of them"
    )
    buffers: Literal["average", "local"] = Field(
        "average", description="BatchNorm statistics: exchanged, or kept local"
    )
    optimizer: Literal["sgd", "fedadagrad", "fedadam", "fedyogi"] = Field(
        "sgd", description="the server's step with the mean update of the clients; sgd adds it"
    )
    momentum: float | None = Field(None, ge=0, lt=1, description="sgd: the server's momentum (FedAvgM); default 0")
    beta1: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="decay of the first moment; default 0.9, fedadagrad: 0, as in the paper's experiments",
    )
    beta2: float | None = Field(
        None, ge=0, lt=1, description="fedadam, fedyogi: decay of the second moment; default 0.99"
    )
    tau: float | None = Field(None, ge=1e-12, le=1e3, description="adaptivity of the adaptive ones; default 1e-3")

    @property
    def rates(self) -> Adaptive:
        """Return the constants of an adaptive optimiser (defaults of Reddi et al. 2021)."""
        own = ADAPTIVE[self.optimizer]
        return Adaptive(*(getattr(own, k) if getattr(self, k) is None else getattr(self, k) for k in own._fields))

    @property
    def keeps(self) -> tuple[str, ...]:
        """Return the names of the vectors that the optimiser keeps from round to round, each as long as the weights."""
        if self.optimizer == "sgd":
            return ("server.first",) if self.momentum else ()
        return ("server.first", "server.second") if self.rates.beta1 else ("server.second",)

    @model_validator(mode="after")
    def _keys_belong_to_the_optimizer(self) -> ServerConfig:
        for key, names in OWNERS.items():
            if getattr(self, key) is not None and self.optimizer not in names:
                raise ValueError(f"server.{key} belongs to server.optimizer={' or '.join(names)}, not {self.optimizer}")
        if self.optimizer != "sgd" and "learning_rate" not in self.model_fields_set:
            raise ValueError(
                f"server.optimizer={self.optimizer} needs server.learning_rate, a step of the weights (e.g. 0.01)"
            )
        return self
