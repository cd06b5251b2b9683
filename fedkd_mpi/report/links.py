"""Links and devices that --network replays a run over: presets, and profiles of the user's own in YAML."""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import Field, ValidationError

from fedkd_mpi.errors import UserError
from fedkd_mpi.sections import Section


class Profile(Section):
    """The keys of a profile.

    A client's bandwidths are the medians times exp(spread * z), its slow-down likewise with slowdown_spread, z a
    standard normal number of the client's own.
    """

    name: str
    up_mbit: float = Field(gt=0, description="median uplink, 10^6 bits per second")
    down_mbit: float = Field(gt=0, description="median downlink")
    latency_ms: float = Field(0.0, ge=0, description="of a message, one way")
    spread: float = Field(0.0, ge=0, description="standard deviation of the logarithm of a client's bandwidths")
    slowdown: float = Field(1.0, ge=0, description="median of local training and encoding over the logged seconds")
    slowdown_spread: float = Field(0.0, ge=0)
    server_mbit: float | None = Field(None, gt=0, description="all that the server can move; null = no limit")
    dropout: float = Field(0.0, ge=0, lt=1, description="probability that a client fails in a round")
    timeout_seconds: float | None = Field(
        None, gt=0, description="the server goes on without later clients; null = waits"
    )
    cohort: int | None = Field(
        None, ge=1, description="clients a round, drawn from the logged; null = the logged cohort"
    )
    seed: int = Field(0, ge=0)

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
    try:
        return Profile.model_validate({"name": name} | tree)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise UserError(f"--network {name}: {wrong}; the keys are like, {', '.join(Profile.model_fields)}") from None


def _read(path: Path) -> dict:
    if not path.suffix:
        raise UserError(f"--network {path} is unknown: known are {', '.join(PRESETS)}, or a YAML file")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read --network {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise UserError(f"--network {path} is not YAML") from None
    if not isinstance(tree, dict) or tree.get("like", "4g") not in PRESETS:
        raise UserError(f"--network {path}: give keys and values; like is one of {', '.join(PRESETS)}")
    return PRESETS.get(tree.pop("like", None), {}) | tree
