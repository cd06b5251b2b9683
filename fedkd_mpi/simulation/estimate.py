"""What a round of a run will take, for --dry-run: its time from measured steps, and the bytes of each codec."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from torch import Tensor

from fedkd_mpi.client.batches import per_epoch
from fedkd_mpi.client.client import Client
from fedkd_mpi.codecs import buffers, factory
from fedkd_mpi.codecs.message import make_message
from fedkd_mpi.common.random_streams import generator
from fedkd_mpi.config.codecs import CODECS
from fedkd_mpi.config.compression import CompressionConfig
from fedkd_mpi.config.schema import Config
from fedkd_mpi.config.sections import LocalConfig
from fedkd_mpi.errors import UserError
from fedkd_mpi.privacy.aes_gcm import OVERHEAD
from fedkd_mpi.simulation.setup import reserved_bytes
from fedkd_mpi.simulation.state import Exchange, Simulation

SECONDS = 5.0  # of training for an update whose size is measured
STEPS = 50  # of such a training at most


def steps(count: int, local: LocalConfig) -> int:
    """Return how many steps one local training on `count` samples takes."""
    if local.steps:
        return local.steps
    return (local.epochs or 0) * per_epoch(count, local)[0]


def estimate(config: Config, run: Simulation, kinds: int, hosted: Sequence[np.ndarray], shared: bool) -> dict[str, Any]:
    """Return seconds per round, what they were measured on, and the bytes of an update by codec.

    `run` has trained a client of each of the `kinds` of teachers once, so that nothing is built for the first time;
    `hosted` are the clients of each process, `shared` says whether the processes of a node share their work.
    """
    count = [len(train) for train, _ in run.data.clients]
    step, update, taken = np.zeros(kinds), None, 0
    for kind in reversed(range(kinds)):
        update, taken, step[kind] = _train(config, run, kind, steps(count[kind], config.local))
    work = np.array([steps(count[client], config.local) * step[client % kinds] for client in range(len(count))])
    codecs, encoding = _codecs(config, run, run.exchange, update) if run.exchange and update is not None else ([], 0.0)
    loads = np.array([(work[own] + encoding).sum() for own in hosted]) * config.clients_per_round / config.num_clients
    return {
        "seconds_per_round": float(loads.mean() if shared else loads.max()),
        "seconds_per_step": float(step[0]),
        "measured_steps": taken,
        "training_steps": steps(count[0], config.local),
        "update_bytes": codecs,
    }


def _train(config: Config, run: Simulation, kind: int, planned: int) -> tuple[Tensor | None, int, float]:
    """Train one client for some steps; return its update, the number of steps, and the seconds of one step."""
    replica, client = run.exchange.replica if run.exchange else None, run.clients[kind]
    one = run.trainer.train(client, 0, replica, evaluate=False)
    taken = min(planned, STEPS, max(1, int(SECONDS / max(one.seconds_train, 1e-6))))
    run.trainer.config = config.model_copy(
        update={"local": LocalConfig(steps=taken, batch_size=config.local.batch_size)}
    )
    fresh = Client(kind, client.train_indices, client.test_indices)
    result = run.trainer.train(fresh, 0, replica, evaluate=False)
    return result.update, taken, result.seconds_train / taken


def _codecs(config: Config, run: Simulation, exchange: Exchange, update: Tensor) -> tuple[list[dict[str, Any]], float]:
    """Return the bytes of an update by codec, with the first and the last threshold, and the seconds of encoding it.

    The codec of the configuration has its own options and comes first; the others have their defaults.
    """
    own = config.compression
    found, seconds = [], 0.0
    others = () if exchange.student.only_buffers else (name for name in CODECS if name != own.codec)
    for name in [own.codec, *others]:
        with suppress(UserError):  # a codec that this network does not admit; the configured one was admitted before
            compression = own if name == own.codec else CompressionConfig(codec=name)
            began = time.perf_counter()
            sizes = [_size(config, exchange, compression, update, share) for share in (own.t_start, own.t_end)]
            seconds = seconds or (time.perf_counter() - began) / len(sizes)
            name = "none" if exchange.student.only_buffers else name
            found.append({"codec": name, "first": sizes[0], "last": sizes[1]})
    return found, seconds


def _size(config: Config, exchange: Exchange, compression: CompressionConfig, update: Tensor, threshold: float) -> int:
    student = exchange.student
    reserved = reserved_bytes(config, student)
    shape = config.rounds, config.clients_per_round
    codec = factory.build(compression, student.parameter_layers, *shape, reserved=reserved).at(0)
    update = update.clone()
    if exchange.protection:
        exchange.protection.on_update(student, update, 0, 0)
    parameters, statistics = student.exchanged_parts(update)
    (records,) = codec.encode_each([parameters], threshold, [{}], [generator(config.seed, "codec", 0, 0)])
    message = make_message(0, 0, 1, records + buffers.encode(statistics, alone=student.only_buffers))
    return int(message.whole.size) + (OVERHEAD if config.privacy.encrypts else 0)
