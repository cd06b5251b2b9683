"""Rank 0: the weighted mean of the clients' updates, encoded once more for the downlink."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedkd_mpi.codecs import Codec, buffers, wire
from fedkd_mpi.codecs.buffers import BufferMean
from fedkd_mpi.common.random_streams import generator
from fedkd_mpi.config.sections import ServerConfig as Settings
from fedkd_mpi.errors import RunFault
from fedkd_mpi.models.flat import FlatModel


@dataclass
class Server:
    """What the server keeps from round to round, next to the student replica that all hold: its codec's state."""

    settings: Settings
    student: FlatModel
    codec: Codec
    device: str
    seed: int
    num_clients: int
    codec_state: dict[str, Tensor] = field(default_factory=dict)  # as the sender of the downlink
    uplink_state: dict[str, Tensor] = field(default_factory=dict)  # as the receiver of the uplink

    def aggregate(self, round_index: int, messages: Iterable[tuple[wire.Header, list[wire.Record]]]) -> Tensor | None:
        """Return sum_i w_i decode(payload_i), flat, over the messages that carry an update; None if none does.

        Updates are added in the order given (by client), so that the bits do not depend on who arrives first; w_i is
        uniform as in the paper, or in proportion to the training samples. Raises RunFault naming the client.
        """
        total, statistics = self.codec.sum(self.device), BufferMean(self.student.exchanged_buffers, self.device)
        weights, senders, count = 0, 0, len(self.student.parameter_layers)
        for header, records in messages:
            if header.kind == wire.SKIPPED:
                continue
            weight = header.samples if self.settings.weighting == "samples" else 1
            try:
                total.add(records[:count], weight)
                statistics.add(records[count:], weight)
            except wire.WireError as error:
                raise RunFault(f"uplink message: {error}", round=round_index, client=header.sender) from None
            weights += weight
            senders += 1
        if not senders:
            return None
        mean = [part.div_(weights) for part in total.take()]
        mean = self.codec.receive(mean, self.uplink_state, senders / self.num_clients)
        flat = torch.zeros_like(self.student.state)
        for view, tensor in zip(self.student.exchanged(flat), mean + statistics.take(), strict=True):
            view.copy_(tensor)
        return flat

    def encode(self, round_index: int, update: Tensor, threshold: float) -> list[wire.Record]:
        """Return the records of the downlink: a second truncation with the round's threshold.

        Raises RunFault if the mean of the updates is not finite (finite ones may add up to more than float32 holds).
        """
        self.student.require_finite(update, "mean of the updates", round_index)
        rng = generator(self.seed, "codec", round_index)
        codec = self.codec.downlink().at(round_index)
        parameters, statistics = self.student.exchanged_parts(update)
        return codec.encode(parameters, threshold, self.codec_state, rng) + buffers.encode(statistics)


def apply(
    student: FlatModel,
    replica: Tensor,
    update: Sequence[Tensor],
    settings: Settings,
    state: dict[str, Tensor],
    statistics: Sequence[Tensor] = (),
) -> None:
    """Move a replica of the student (flat) by what the server sent: the same on the server and every client.

    `update` moves the parameters, `statistics` take the place of the buffers.

    Optimiser sgd adds learning_rate * update. fedadam is Algorithm 2 of Reddi et al. 2021 on the parameters (m, v are
    "server.first" and "server.second" in `state`; v starts at tau^2, and nothing corrects their bias).
    """
    parameters, own_statistics = student.exchanged_parts(replica)
    for view, tensor in zip(own_statistics, statistics, strict=True):
        view.copy_(tensor)
    if settings.optimizer == "sgd":
        for view, tensor in zip(parameters, update, strict=True):
            view.add_(tensor, alpha=settings.learning_rate)
        return
    step = torch.zeros_like(replica)
    for view, tensor in zip(student.exchanged_parts(step)[0], update, strict=True):
        view.copy_(tensor)
    moved = step[: student.trainable.numel()]
    first = state.setdefault("server.first", torch.zeros_like(moved))
    second = state.setdefault("server.second", torch.full_like(moved, settings.rates.tau**2))
    first.mul_(settings.rates.beta1).add_(moved, alpha=1 - settings.rates.beta1)
    second.mul_(settings.rates.beta2).addcmul_(moved, moved, value=1 - settings.rates.beta2)
    moved.copy_(settings.learning_rate * first / (second.sqrt() + settings.rates.tau))
    replica.add_(step)


def catchup_state_bytes(student: FlatModel, codec: Codec, settings: Settings) -> int:
    """Return the bytes of what a receiver keeps from round to round next to its replica, float32.

    Who missed rounds fetches them too, where it takes the dense student in place of the broadcasts: the codec's
    estimates (ef21) and the optimiser's moments (fedadam).
    """
    moments = 2 * sum(parameter.numel() for parameter in student.module.parameters() if parameter.requires_grad)
    return 4 * (codec.receiver_numbers + (moments if settings.optimizer == "fedadam" else 0))
