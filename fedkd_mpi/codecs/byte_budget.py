"""A byte budget instead of an energy threshold: search for the highest threshold whose message fits the budget."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedkd_mpi.codecs import Codec, State, Sum
from fedkd_mpi.codecs.wire import HEADER_BYTES, RECORD_BYTES, Record
from fedkd_mpi.common.remembered import Kind, Memory
from fedkd_mpi.errors import RunFault, UserError

FINEST, COARSEST = 1e-6, 0.999  # bounds of the share of the energy that may be lost
TRIALS = 10  # encodings per message at most
CLOSE = 0.97  # share of the budget at which the search ends


def spread(total: int, rounds: int, cohort: int, growth: float) -> list[int]:
    """Return the payload bytes per message for each round, so that all messages of the run take `total` bytes.

    `total` includes headers. A round has two messages per client of the cohort, one up and one down. The budget of a
    round grows linearly; the last round has `growth` times the budget of the first.
    """
    weights = np.linspace(1.0, growth, rounds)
    return [int(share) - HEADER_BYTES for share in total * weights / weights.sum() / (2 * cohort)]


def require_room(key: str, budget: int, least: int, rounds: int = 0, cohort: int = 1, growth: float = 1.0) -> None:
    """Raise UserError with the smallest valid budget if the smallest messages do not fit.

    `budget` are the bytes per message or, with `rounds`, of the whole run. `key` is the configuration key, `least` are
    the bytes of the payload of the smallest message.
    """
    told = f"the smallest message takes {least} bytes"
    if rounds:
        weights = np.linspace(1.0, growth, rounds)
        told = f"with its header, the smallest of {2 * cohort * rounds} messages takes {HEADER_BYTES + least} bytes"
        least = math.ceil((HEADER_BYTES + least + 1) * 2 * cohort * weights.sum() / weights.min())
    if budget < least:
        raise UserError(f"compression.{key}={budget} is too small: {told}; give at least {least}")


def smallest(codec: Codec) -> int:
    """Return the bytes of payload that a message takes at the lowest threshold that is searched, with record headers.

    They are measured on a random update, whose energy is spread over more directions than that of trained networks.
    """
    rng = np.random.default_rng(0)
    update = [torch.from_numpy(rng.standard_normal(layer.shape, np.float32)) for layer in codec.layers]
    return _size(codec.encode(update, 1 - COARSEST, {}, rng))


class ByteBudget(Codec):
    """Messages of at most `budgets[round]` bytes of payload, record headers included; the threshold is not used.

    A single budget applies to every round. The sender's state keeps the last threshold that fitted ("budget.loss"), at
    which the next search starts.
    """

    def __init__(self, inner: Codec, budgets: Sequence[int], round_index: int = 0):
        self.inner, self.layers, self.budgets, self.round_index = inner, inner.layers, budgets, round_index
        self.follows_loss = inner.follows_loss
        self.budget = budgets[min(round_index, len(budgets) - 1)]

    def at(self, round_index: int) -> Codec:
        """Return the codec with the budget of a round."""
        return ByteBudget(self.inner.at(round_index), self.budgets, round_index)

    def follow(self, losses: Sequence[float]) -> Codec:
        """Return the codec of the round after those with these losses, with the same budgets."""
        return ByteBudget(self.inner.follow(losses), self.budgets, self.round_index)

    def downlink(self) -> Codec:
        """Return the codec of the server's messages, with the same budgets."""
        return ByteBudget(self.inner.downlink(), self.budgets, self.round_index)

    def encode(
        self, update: Sequence[Tensor], threshold: float, state: State, rng: np.random.Generator
    ) -> list[Record]:
        """Return the records of the largest message found within the budget; raises RunFault if no message fits."""
        low, high, tested = math.log(FINEST), math.log(COARSEST), [False, False]  # too large at low, fits at high
        guess = float(state["budget.loss"].log()) if "budget.loss" in state else math.log(0.05)
        best, least = None, math.inf
        for _ in range(TRIALS):
            records = self.inner.encode(update, 1 - math.exp(guess), state, rng)
            size = _size(records)
            least = min(least, size)
            if size <= self.budget:
                best, high, tested[1] = records, guess, True
                state["budget.loss"] = torch.tensor(math.exp(guess), dtype=torch.float64)
                if size >= CLOSE * self.budget or guess <= math.log(FINEST):
                    break
            else:
                low, tested[0] = guess, True
                if guess >= math.log(COARSEST):
                    break
            guess += 1.5 * math.log(size / ((1 + CLOSE) / 2 * self.budget))
            if not low < guess < high:
                above = guess >= high
                guess = (low + high) / 2 if tested[above] else (low, high)[above]
        return self._nothing(update, state, rng, least) if best is None else best

    def decode(self, records: Sequence[Record], device: str) -> list[Tensor]:
        """Return the tensors that the inner codec decodes."""
        return self.inner.decode(records, device)

    def sum(self, device: str) -> Sum:
        """Return the sum of the inner codec."""
        return self.inner.sum(device)

    def _nothing(self, update: Sequence[Tensor], state: State, rng: np.random.Generator, least: float) -> list[Record]:
        """Return the message of threshold 0, for an update of which not even the least energy fits."""
        records = self.inner.encode(update, 0.0, state, rng)
        if (size := _size(records)) > self.budget:
            raise RunFault(
                f"the byte budget allows {self.budget} bytes per message, but the smallest message has"
                f" {min(size, least)}: raise compression.byte_budget or run_budget"
            )
        return records

    def sender_memory(self) -> Memory:
        """Return the inner codec's with the share of the energy that was lost last."""
        inner = self.inner.sender_memory()
        return Memory({**inner.tensors, "budget.loss": Kind((), "float64")}, inner.complete)

    def receiver_memory(self) -> Memory:
        """Return the inner codec's."""
        return self.inner.receiver_memory()


def _size(records: Sequence[Record]) -> int:
    return sum(RECORD_BYTES + record.data.size for record in records)
