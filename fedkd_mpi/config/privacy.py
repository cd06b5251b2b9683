"""The section `privacy`: how updates are protected on their way."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from fedkd_mpi.config import methods
from fedkd_mpi.config.sections import HUGE, TINY, Section

NOISE = 1e-6, 1e9  # noise multipliers: below, epsilon is beyond 10^12


class PrivacyConfig(Section):
    encryption: Literal["none", "aes-gcm"] = Field(
        "none",
        description="aes-gcm: every message is encrypted and authenticated, 28 bytes each (docs/privacy.md)",
    )

    clip_norm: float | None = Field(
        None,
        ge=TINY,
        le=HUGE,
        description="differential privacy: largest 2-norm C of a client's update; null = none (docs/privacy.md)",
    )
    noise_multiplier: float | None = Field(
        None, ge=NOISE[0], le=NOISE[1], description="deviation of the noise as a multiple z of clip_norm"
    )
    target_epsilon: float | None = Field(
        None,
        ge=1e-3,
        le=1e6,
        description="in place of noise_multiplier: epsilon of the whole run, from which it follows",
    )
    delta: float | None = Field(
        None, ge=1e-300, lt=1, description="delta at which epsilon holds; below 1 / num_clients, e.g. 1e-5"
    )
    where: Literal["server", "client"] = Field(
        "server",
        description="who adds the noise: a trusted server to the sum of updates, or each client to its own update",
    )
    max_epsilon: float | None = Field(
        None, ge=1e-3, le=1e6, description="the run ends before the round in which epsilon would exceed this"
    )
    secret_cohorts: bool = Field(
        False,
        description="nobody learns who takes part in a round, so that sampling without replacement lessens epsilon; for"
        " clients that remember nothing",
    )

    @model_validator(mode="after")
    def _noise_is_known(self) -> PrivacyConfig:
        others = {
            "noise_multiplier": self.noise_multiplier,
            "target_epsilon": self.target_epsilon,
            "delta": self.delta,
            "max_epsilon": self.max_epsilon,
            "where=client": self.where == "client" or None,
            "secret_cohorts": self.secret_cohorts or None,
        }
        if self.clip_norm is None:
            if given := [key for key, value in others.items() if value is not None]:
                raise ValueError(f"privacy.{given[0]} needs privacy.clip_norm, the largest norm of a client's update")
            return self
        if (self.noise_multiplier is None) == (self.target_epsilon is None):
            raise ValueError("privacy.clip_norm needs one of privacy.noise_multiplier and privacy.target_epsilon")
        if self.delta is None:
            raise ValueError("privacy.clip_norm needs privacy.delta, e.g. 1e-5")
        return self

    @property
    def differential(self) -> bool:
        """Whether the exchanged network is differentially private."""
        return self.clip_norm is not None

    @property
    def encrypts(self) -> bool:
        """Whether messages are encrypted."""
        return self.encryption != "none"

    def problem(self, method: str) -> str | None:
        """Return in one line what these keys cannot do for a method, None where there is nothing."""
        if self.encrypts and not methods.exchanges(method):
            return f"method={method} exchanges nothing: set privacy.encryption=none"
        return None
