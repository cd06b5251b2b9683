"""Optimisers and a schedule of a user's own, which tests name by their path; some cannot work and must be refused."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer


class Base(Optimizer):
    """Signs of a decaying mean of gradients, with a step that decays too: numbers in its state and in its group."""

    def __init__(self, params: Any, lr: float, decay: float = 0.9):
        super().__init__(params, {"lr": lr, "decay": decay, "travelled": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            group["travelled"] += group["lr"]
            for parameter in group["params"]:
                self.move(group, parameter, self.state[parameter])

    def move(self, group: dict[str, Any], parameter: torch.Tensor, state: dict[str, Any]) -> None:
        state["count"] = state.get("count", 0) + 1
        mean = state.setdefault("mean", torch.zeros_like(parameter))
        mean.lerp_(parameter.grad, 1 - group["decay"])
        if state["count"] == 5:  # a tensor that is not there at first
            state["late"] = mean.clone()
        pull = 0.1 * state["late"] if "late" in state else 0
        parameter.sub_(group["lr"] / (1 + group["travelled"]) * (mean.sign() + pull) / state["count"])


class Returning(Base):
    """Changes a value of its group and keeps a tensor in two of four steps, and takes both back."""

    def __init__(self, params: Any, lr: float):
        super().__init__(params, lr)
        for group in self.param_groups:
            group["phase"] = 0

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            group["phase"] = (group["phase"] + 1) % 4
        super().step()

    def move(self, group: dict[str, Any], parameter: torch.Tensor, state: dict[str, Any]) -> None:
        pull = state.pop("pull", torch.zeros_like(parameter))
        parameter.sub_(group["lr"] * (group["phase"] + 1) * (parameter.grad + pull))
        if group["phase"] > 1:
            state["pull"] = parameter.grad.clone()


class Listing(Base):
    """Keeps a list."""

    def move(self, group: dict[str, Any], parameter: torch.Tensor, state: dict[str, Any]) -> None:
        state["past"] = [1.0]


class Restless(Base):
    """Counts its steps beside its state."""

    steps = 0

    def step(self, closure: Any = None) -> None:
        self.steps += 1


class Replacing(Base):
    """Puts other tensors in the place of the parameters' values."""

    def move(self, group: dict[str, Any], parameter: torch.Tensor, state: dict[str, Any]) -> None:
        parameter.data = parameter - group["lr"] * parameter.grad


class Apart(Base):
    """Keeps something of no parameter."""

    def move(self, group: dict[str, Any], parameter: torch.Tensor, state: dict[str, Any]) -> None:
        self.state["all"]["steps"] = 1


class Failing(Base):
    """Fails in its 30th step."""

    def move(self, group: dict[str, Any], parameter: torch.Tensor, state: dict[str, Any]) -> None:
        super().move(group, parameter, state)
        if state["count"] == 30:
            raise ZeroDivisionError("no such thing")


class Broken(Base):
    """Fails in its first step."""

    def move(self, group: dict[str, Any], parameter: torch.Tensor, state: dict[str, Any]) -> None:
        raise ZeroDivisionError("no such thing")


def triangle(round_index: int, rounds: int, step: int, steps: int) -> float:
    """Rise to the middle of the run, and fall."""
    share = (round_index * steps + step) / (rounds * steps)
    return 1 - abs(2 * share - 1)


def backwards(round_index: int, rounds: int, step: int, steps: int) -> float:
    return -1.0


def nothing(round_index: int, rounds: int, step: int, steps: int) -> None:
    return None
