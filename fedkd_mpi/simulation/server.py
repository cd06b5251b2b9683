"""The server on rank 0: computes the weighted mean of the clients' updates and encodes it for the downlink."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedkd_mpi.codecs import Codec, buffers, wire
from fedkd_mpi.codecs.buffers import BufferMean
from fedkd_mpi.common.random_streams import generator
from fedkd_mpi.config.training import ServerConfig as Settings
from fedkd_mpi.errors import RunFault
from fedkd_mpi.models.flat import FlatModel
from fedkd_mpi.simulation.aggregation import Collection, find_aggregator
from fedkd_mpi.simulation.private_sum import PrivateSum


@dataclass
class Server:
    """The state that the server keeps between rounds in addition to the student replica: that of its codec."""

    settings: Settings
    student: FlatModel
    codec: Codec
    device: str
    seed: int
    num_clients: int
    new_private_sum: Callable[[], PrivateSum] | None = None  # where the server adds noise to the sum
    codec_state: dict[str, Tensor] = field(default_factory=dict)  # of the sender of the downlink
    uplink_state: dict[str, Tensor] = field(default_factory=dict)  # of the receiver of the uplink

    def __post_init__(self) -> None:
        self._aggregator = find_aggregator(self.settings.aggregator)

    def aggregate(self, round_index: int, messages: Iterable[tuple[wire.Header, list[wire.Record]]]) -> Tensor | None:
        """Return sum_i w_i decode(payload_i), flat, over the messages with an update; None if there is none.

        Updates are added in the given order (by client), so that the bits do not depend on the order of arrival. The
        weights w_i are uniform as in the paper, or proportional to the training samples. A user's aggregator takes
        the place of the sum. With a private sum every client of the cohort counts, one without an update as zero, so
        that the divisor tells nothing. Raises RunFault naming the client if a message is invalid.
        """
        own, name = self._aggregator, self.settings.aggregator
        private = self.new_private_sum() if self.new_private_sum else None
        total = private or (Collection(self.codec, self.device, own, name) if own else self.codec.sum(self.device))
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
        if private:
            mean = private.mean(round_index)
        elif senders:
            mean = total.take() if own else [part.div_(weights) for part in total.take()]
        else:
            return None
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
        records = codec.encode(parameters, threshold, self.codec_state, rng)
        return records + buffers.encode(statistics, alone=self.student.only_buffers)


def apply(
    student: FlatModel,
    replica: Tensor,
    update: Sequence[Tensor],
    settings: Settings,
    state: dict[str, Tensor],
    statistics: Sequence[Tensor] = (),
) -> None:
    """Apply a downlink update to a replica of the student (flat), in the same way on the server and every client.

    `update` changes the parameters; `statistics` replace the buffers. Optimiser sgd adds learning_rate * update; with
    momentum it adds learning_rate times the decaying sum of updates (FedAvgM, Hsu et al. 2019). The others are
    Algorithm 2 of Reddi et al. 2021. `state` holds what the optimiser keeps: m is "server.first", v "server.second".
    """
    parameters, own_statistics = student.exchanged_parts(replica)
    for view, tensor in zip(own_statistics, statistics, strict=True):
        view.copy_(tensor)
    if not settings.keeps:
        for view, tensor in zip(parameters, update, strict=True):
            view.add_(tensor, alpha=settings.learning_rate)
        return
    step = torch.zeros_like(replica)
    for view, tensor in zip(student.exchanged_parts(step)[0], update, strict=True):
        view.copy_(tensor)
    moved = step[: student.trainable.numel()]
    moved.copy_(_momentum(moved, settings, state) if settings.optimizer == "sgd" else _adaptive(moved, settings, state))
    replica.add_(step)


def _momentum(moved: Tensor, settings: Settings, state: dict[str, Tensor]) -> Tensor:
    """Return the step of FedAvgM with the mean update `moved`; does not modify it."""
    first = state.setdefault("server.first", torch.zeros_like(moved))
    first.mul_(settings.momentum or 0.0).add_(moved)
    return settings.learning_rate * first


def _adaptive(moved: Tensor, settings: Settings, state: dict[str, Tensor]) -> Tensor:
    """Return the step of Algorithm 2 of Reddi et al. 2021 (without bias correction); does not modify `moved`."""
    beta1, beta2, tau = settings.rates
    first = moved
    if beta1:
        first = state.setdefault("server.first", torch.zeros_like(moved))
        first.mul_(beta1).add_(moved, alpha=1 - beta1)
    second = state.setdefault("server.second", torch.full_like(moved, tau**2))
    if settings.optimizer == "fedadagrad":
        second.addcmul_(moved, moved)
    elif settings.optimizer == "fedadam":
        second.mul_(beta2).addcmul_(moved, moved, value=1 - beta2)
    else:  # fedyogi
        square = moved.square()
        second.sub_(square * torch.sign(second - square), alpha=1 - beta2)
    return settings.learning_rate * first / (second.sqrt() + tau)


def catchup_state_bytes(student: FlatModel, codec: Codec, settings: Settings) -> int:
    """Return the bytes of the state (float32) that a receiver keeps between rounds in addition to its replica.

    It consists of the codec's estimates (ef21) and what the server's optimiser keeps. A client that missed rounds also
    fetches this state if it fetches the dense student instead of the broadcasts.
    """
    weights = sum(parameter.numel() for parameter in student.module.parameters() if parameter.requires_grad)
    return 4 * (codec.receiver_numbers + len(settings.keeps) * weights)
