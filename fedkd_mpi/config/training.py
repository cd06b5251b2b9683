"""The sections of the optimisers: of the local training, of its learning rates over the rounds, and of the server."""

from __future__ import annotations

import math
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, model_validator

from fedkd_mpi.config.sections import HUGE, MANY, PART, TINY, Section

Decay = Annotated[float, Field(ge=0, lt=1)]

OPTIMIZERS_OF = {  # optimizer.name by the keys that belong to some alone
    "momentum": ("sgd",),
    "nesterov": ("sgd",),
    "betas": ("adam", "adamw"),
    "eps": ("adam", "adamw"),
}


class OptimizerConfig(Section):
    name: Literal["sgd", "adam", "adamw"] = Field(
        "sgd", description="optimiser of the local training, as in torch.optim"
    )
    momentum: float = Field(0.0, ge=0, lt=1, description="for sgd")
    nesterov: bool = Field(False, description="for sgd: Nesterov's momentum, as in torch.optim.SGD")
    betas: list[Decay] | None = Field(
        None, min_length=2, max_length=2, description="adam, adamw: decays of both moments; default [0.9, 0.999]"
    )
    eps: float | None = Field(None, ge=TINY, le=HUGE, description="adam, adamw: added to the root; default 1e-8")
    weight_decay: float = Field(0.0, ge=0, le=HUGE, description="added to the gradient; adamw: apart from it")
    clip_norm: float | None = Field(
        None, ge=TINY, le=HUGE, description="largest 2-norm of one network's gradient; null = no clipping"
    )

    @model_validator(mode="after")
    def _keys_belong_to_the_name(self) -> OptimizerConfig:
        for key, off in (("momentum", "0"), ("nesterov", "false")):
            if self.name != "sgd" and getattr(self, key):
                raise ValueError(f"optimizer.{key} belongs to optimizer.name=sgd; remove it or set it to {off}")
        for key in ("betas", "eps"):
            if self.name == "sgd" and getattr(self, key) is not None:
                raise ValueError(f"optimizer.{key} belongs to optimizer.name=adam or adamw, not sgd")
        if self.nesterov and not self.momentum:
            raise ValueError("optimizer.nesterov=true needs optimizer.momentum above 0")
        return self


class ScheduleConfig(Section):
    name: Literal["constant", "step", "cosine"] = Field(
        "constant", description="learning rates over the rounds, as torch.optim.lr_scheduler has them"
    )
    warmup_rounds: int = Field(0, ge=0, le=MANY, description="first rounds, in which the rates rise in equal steps")
    step_rounds: int | None = Field(None, ge=1, le=MANY, description="step: rounds between two falls of the rates")
    gamma: float | None = Field(None, ge=TINY, le=1, description="step: factor of each fall; default 0.1")
    minimum: float | None = Field(None, ge=0, le=1, description="cosine: final share of the rates; default 0")

    @model_validator(mode="after")
    def _keys_belong_to_the_name(self) -> ScheduleConfig:
        for key, name in (("step_rounds", "step"), ("gamma", "step"), ("minimum", "cosine")):
            if getattr(self, key) is not None and self.name != name:
                raise ValueError(f"schedule.{key} belongs to schedule.name={name}, not {self.name}")
        if self.name == "step" and self.step_rounds is None:
            raise ValueError("schedule.name=step needs schedule.step_rounds")
        return self

    def factor(self, round_index: int, rounds: int) -> float:
        """Return the factor on the learning rates in a round (0-based) of a run: a pure function of its arguments.

        With W warm-up rounds, round r < W has (r + 1) / (W + 1), and round W has 1. The others equal StepLR and
        CosineAnnealingLR(T_max = rounds - W) of torch, counted from round W on.
        """
        if round_index < self.warmup_rounds:
            return (round_index + 1) / (self.warmup_rounds + 1)
        after = round_index - self.warmup_rounds
        if self.name == "step":
            falls = after // (self.step_rounds or 1)
            return float((0.1 if self.gamma is None else self.gamma) ** falls)
        if self.name == "cosine":
            least = self.minimum or 0.0
            return least + (1 - least) * (1 + math.cos(math.pi * after / (rounds - self.warmup_rounds))) / 2
        return 1.0


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
        None, ge=0, lt=1, description="decay of the first moment; default 0.9, fedadagrad: 0 (none)"
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
