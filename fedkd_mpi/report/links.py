"""Links and devices that --network replays a run over: presets, and profiles of the user's own in YAML."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from fedkd_mpi.common import yaml_loader
from fedkd_mpi.common.options import Hint, validated
from fedkd_mpi.config.sections import MANY, NAME, YEARS, Section
from fedkd_mpi.errors import UserError, shown

SLOWEST, FASTEST = 1e-6, 1e12  # Mbit/s


class Profile(Section):
    """The keys of a profile.

    A client's bandwidths are the medians times exp(spread * z), its slow-down likewise with slowdown_spread, z a
    standard normal number of the client's own.
    """

    name: str = Field(max_length=NAME)
    up_mbit: float = Field(ge=SLOWEST, le=FASTEST, description="median uplink, 10^6 bits per second")
    down_mbit: float = Field(ge=SLOWEST, le=FASTEST, description="median downlink")
    latency_ms: float = Field(0.0, ge=0, le=1e9, description="of a message, one way")
    spread: float = Field(0.0, ge=0, le=20, description="standard deviation of the logarithm of a client's bandwidths")
    slowdown: float = Field(
        1.0, ge=0, le=1e9, description="median of local training and encoding over the logged seconds"
    )
    slowdown_spread: float = Field(0.0, ge=0, le=20)
    server_mbit: float | None = Field(
        None, ge=SLOWEST, le=FASTEST, description="all that the server can move; null = no limit"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="probability that a client fails in a round")
    timeout_seconds: float | None = Field(
        None, gt=0, le=YEARS, description="the server goes on without later clients; null = waits"
    )
    cohort: int | None = Field(
        None, ge=1, le=MANY, description="clients a round, drawn from the logged; null = the logged cohort"
    )
    seed: int = Field(0, ge=0, lt=2**63)

    def text(self) -> str:
        """Return the profile in a line."""
        parts = [
            f"{self.up_mbit:g} Mbit/s up and {self.down_mbit:g} down (medians, spread {self.spread:g})",
            f"latency {self.latency_ms:g} ms",
            f"training {self.slowdown:g} times the logged seconds (spread {self.slowdown_spread:g})",
            f"{100 * self.dropout:g} % of updates lost",
            f"{self.cohort:,} clients a round drawn from the logged" if self.cohort else "the logged cohorts",
        ]
        if self.server_mbit:
            parts.append(f"server {self.server_mbit:g} Mbit/s")
        if self.timeout_seconds:
            parts.append(f"timeout {self.timeout_seconds:g} s")
        return ", ".join(parts) + "."


# Round figures for orientation, not measurements: where it matters, write a profile of your own.
PRESETS = {
    "4g": {"up_mbit": 10, "down_mbit": 30, "latency_ms": 50, "spread": 0.7}
    | {"slowdown": 8, "slowdown_spread": 0.4, "dropout": 0.05},
    "home": {"up_mbit": 20, "down_mbit": 100, "latency_ms": 15, "spread": 0.5}
    | {"slowdown": 2, "slowdown_spread": 0.3, "dropout": 0.01},
    "hospitals": {"up_mbit": 200, "down_mbit": 200, "latency_ms": 10, "spread": 0.3},
    "cluster": {"up_mbit": 100_000, "down_mbit": 100_000, "latency_ms": 0.002},
}


def find(name: str) -> Profile:
    """Return a preset, or the profile of a YAML file, whose key `like` may name a preset to start from.

    Raises UserError naming the wrong key.
    """
    tree = PRESETS.get(name)
    if tree is None:
        tree = _read(Path(name))
        name = Path(name).stem
    keys = ["like", *Profile.model_fields]
    hint = Hint(keys, f"the keys are {', '.join(keys)}")
    return validated(Profile, {"name": name} | tree, hint, where=f"--network {shown(name)}: ")


def _read(path: Path) -> dict:
    known = ", ".join(PRESETS)
    try:
        tree = yaml_loader.read_mapping(path, "--network")
    except FileNotFoundError:
        raise UserError(f"--network {shown(path)} is unknown: known are {known}, or a YAML file") from None
    like = tree.pop("like", None)
    if like is not None and (not isinstance(like, str) or like not in PRESETS):
        raise UserError(f"--network {shown(path)}: like={shown(like)} must be one of {known}")
    return PRESETS.get(like, {}) | tree
