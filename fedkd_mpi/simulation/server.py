"""The server on rank 0: computes the weighted mean of the clients' updates and encodes it for the downlink."""

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
from fedkd_mpi.simulation.aggregation import Collection, find_aggregator


@dataclass
class Server:
    """The state that the server keeps between rounds in addition to the student replica: that of its codec."""

    settings: Settings
    student: FlatModel
    codec: Codec
    device: str
    seed: int
    num_clients: int
    codec_state: dict[str, Tensor] = field(default_factory=dict)  # of the sender of the downlink
    uplink_state: dict[str, Tensor] = field(default_factory=dict)  # of the receiver of the uplink

    def __post_init__(self) -> None:
        self._aggregator = find_aggregator(self.settings.aggregator)

    def aggregate(self, round_index: int, messages: Iterable[tuple[wire.Header, list[wire.Record]]]) -> Tensor | None:
        """Return sum_i w_i decode(payload_i), flat, over the messages with an update; None if there is none.

        Updates are added in the given order (by client), so that the bits do not depend on the order of arrival. The
        weights w_i are uniform as in the paper, or proportional to the training samples. A user's aggregator takes
        the place of the sum. Raises RunFault naming the client if a message is invalid.
        """
        own, name = self._aggregator, self.settings.aggregator
        total = Collection(self.codec, self.device, own, name) if own else self.codec.sum(self.device)
        statistics = BufferMean(self.student.exchanged_buffers, self.device)
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
        mean = total.take() if own else [part.div_(weights) for part in total.take()]
        mean = self.codec.receive(mean, self.uplink_state, senders / self.num_clients)
        flat = torch.zeros_like(self.student.state)
        for view, tensor in zip(self.student.exchanged(flat), mean + statistics.take(), strict=True):
            view.copy_(tensor)
        return flat

    def encode(self, round_index: int, update: Tensor, threshold: float) -> list[wire.Record]:
        """Return the records of the downlink: the mean update, truncated again with the threshold of the round.

        Raises RunFault if the mean of the updates is not finite (the sum of finite updates may exceed float32's range).
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
    """Apply a downlink update to a replica of the student (flat), in the same way on the server and every client.

    `update` changes the parameters; `statistics` replace the buffers. Optimiser sgd adds learning_rate * update.
    fedadam is Algorithm 2 of Reddi et al. 2021 on the parameters (m and v are "server.first" and "server.second" in
    `state`; v starts at tau^2, without bias correction).
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
    """Return the bytes of the state (float32) that a receiver keeps between rounds in addition to its replica.

    It consists of the codec's estimates (ef21) and the optimiser's moments (fedadam). A client that missed rounds also
    fetches this state if it fetches the dense student instead of the broadcasts.
    """
    moments = 2 * sum(parameter.numel() for parameter in student.module.parameters() if parameter.requires_grad)
    return 4 * (codec.receiver_numbers + (moments if settings.optimizer == "fedadam" else 0))
