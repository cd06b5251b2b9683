"""Profiles of links and devices for --network: presets, and the user's profiles in YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from fedkd_mpi.common import yaml_loader
from fedkd_mpi.common.options import Hint, validated
from fedkd_mpi.config.sections import MANY, NAME, YEARS, Section
from fedkd_mpi.errors import UserError, shown

SLOWEST, FASTEST = 1e-6, 1e12  # Mbit/s


class Profile(Section):
    """The keys of a profile.

    The bandwidths of a client are the medians times exp(spread * z), with a standard normal z per client. Its slow-down
    is computed likewise with slowdown_spread.
    """

    name: str = Field(max_length=NAME)
    up_mbit: float = Field(ge=SLOWEST, le=FASTEST, description="median uplink, 10^6 bits per second")
    down_mbit: float = Field(ge=SLOWEST, le=FASTEST, description="median downlink")
    latency_ms: float = Field(0.0, ge=0, le=1e9, description="latency per message, one way")
    spread: float = Field(0.0, ge=0, le=20, description="standard deviation of the logarithm of a client's bandwidths")
    slowdown: float = Field(
        1.0, ge=0, le=1e9, description="median factor of local training and encoding to the logged seconds"
    )
    slowdown_spread: float = Field(0.0, ge=0, le=20)
    server_mbit: float | None = Field(
        None, ge=SLOWEST, le=FASTEST, description="total bandwidth of the server; null = no limit"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="probability that a client fails in a round")
    timeout_seconds: float | None = Field(
        None, gt=0, le=YEARS, description="the server continues without later clients; null = it waits"
    )
    cohort: int | None = Field(
        None, ge=1, le=MANY, description="clients per round, drawn from the logged ones; null = the logged cohort"
    )
    seed: int = Field(0, ge=0, lt=2**63)

    def text(self) -> str:
        """Return the profile in one line."""
        parts = [
            f"{self.up_mbit:g} Mbit/s up and {self.down_mbit:g} down (medians, spread {self.spread:g})",
            f"latency {self.latency_ms:g} ms",
            f"training {self.slowdown:g} times the logged seconds (spread {self.slowdown_spread:g})",
            f"{100 * self.dropout:g} % of updates lost",
            f"{self.cohort:,} clients per round drawn from the logged" if self.cohort else "the logged cohorts",
        ]
        if self.server_mbit:
            parts.append(f"server {self.server_mbit:g} Mbit/s")
        if self.timeout_seconds:
            parts.append(f"timeout {self.timeout_seconds:g} s")
        return ", ".join(parts) + "."


# Approximate values for orientation, not measurements; write a profile of your own if accuracy matters.
PRESETS = {
    "4g": {"up_mbit": 10, "down_mbit": 30, "latency_ms": 50, "spread": 0.7}
    | {"slowdown": 8, "slowdown_spread": 0.4, "dropout": 0.05},
    "home": {"up_mbit": 20, "down_mbit": 100, "latency_ms": 15, "spread": 0.5}
    | {"slowdown": 2, "slowdown_spread": 0.3, "dropout": 0.01},
    "hospitals": {"up_mbit": 200, "down_mbit": 200, "latency_ms": 10, "spread": 0.3},
    "cluster": {"up_mbit": 100_000, "down_mbit": 100_000, "latency_ms": 0.002},
}


def find(name: str) -> Profile:
    """Return a preset, or the profile of a YAML file, whose key `like` may name a preset with default values.

    Raises UserError naming the invalid key.
    """
    tree = PRESETS.get(name)
    if tree is None:
        tree = _read(Path(name))
        name = Path(name).stem
    keys = ["like", *Profile.model_fields]
    hint = Hint(keys, f"the keys are {', '.join(keys)}")
    return validated(Profile, {"name": name} | tree, hint, where=f"--network {shown(name)}: ")


def _read(path: Path) -> dict[str, Any]:
    known = ", ".join(PRESETS)
    try:
        tree = yaml_loader.read_mapping(path, "--network")
    except FileNotFoundError:
        raise UserError(f"--network {shown(path)} is unknown: known are {known}, or a YAML file") from None
    like = tree.pop("like", None)
    if like is not None and (not isinstance(like, str) or like not in PRESETS):
        raise UserError(f"--network {shown(path)}: like={shown(like)} must be one of {known}")
    return (PRESETS[like] if like is not None else {}) | tree
