"""A run's tensors as the files of a checkpoint, and back; saved_state.py compares them with the run before."""

from __future__ import annotations

from collections.abc import Container, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fedkd_mpi.datasets.tokens import TOKENIZER
from fedkd_mpi.fault_tolerance.checkpoint import Shard
from fedkd_mpi.fault_tolerance.manifest import DATA, Manifest
from fedkd_mpi.models.output import Texts
from fedkd_mpi.simulation.saved_state import SERVER, opened

if TYPE_CHECKING:
    from torch import Tensor

    from fedkd_mpi.simulation.state import Exchange, Simulation

SHARD_BYTES = 2**28  # files of about this size bound the memory that writing and reading take
NETWORKS = ("private", "others.private", "buffers")  # of a client's tensors, those that make up its networks


def shards(run: Simulation) -> Iterator[Shard]:
    """Yield all that this process has to save, in files of bounded size."""
    if run.exchange and run.exchange.server:
        parts = states(run.exchange).items()
        named = {f"{part}/{name}": tensor for part, state in parts for name, tensor in state.items()}
        yield Shard(SERVER, {"replica": run.exchange.replica, **named}, [])
    yield from _tokenizer(run)
    yield from _of_clients(run, None)


def networks(run: Simulation, *, teachers: bool) -> Iterator[Shard]:
    """Yield the networks alone that this process has, in files of bounded size, clients' own only with `teachers`."""
    if run.exchange and run.exchange.server:
        yield Shard(SERVER, {"replica": run.exchange.replica}, [])
    yield from _tokenizer(run)
    if teachers:
        yield from _of_clients(run, NETWORKS)


def _tokenizer(run: Simulation) -> Iterator[Shard]:
    if run.world.is_root and TOKENIZER in run.data.train:
        yield Shard(DATA, {TOKENIZER: torch.tensor(run.data.train[TOKENIZER])}, [])


def _of_clients(run: Simulation, names: Container[str] | None) -> Iterator[Shard]:
    """Yield the tensors of this process's clients, those of `names` where they are given."""
    tensors: dict[str, Tensor] = {}
    clients: list[int] = []
    size = 0
    for client in run.clients.values():
        state = client.copy()
        if not state:
            continue
        kept = {name: tensor for name, tensor in state.items() if names is None or name in names}
        tensors |= {f"{client.id}/{name}": tensor for name, tensor in kept.items()}
        clients.append(client.id)
        size += sum(tensor.nbytes for tensor in kept.values())
        if size >= SHARD_BYTES:
            yield Shard(_name(clients), tensors, clients)
            tensors, clients, size = {}, [], 0
    if clients:
        yield Shard(_name(clients), tensors, clients)


def about(run: Simulation) -> dict[str, Any]:
    """Return what this process tells a checkpoint of its networks and, on rank 0, of the data: see Manifest.

    It never changes, and is found once.
    """
    if run.about is None:
        exchange = run.exchange
        found = {"student": exchange.student.description()} if exchange and exchange.server else {}
        for kind in range(min(len(run.config.architectures), run.config.num_clients)):
            if kind in run.clients:  # client number K has the architecture K
                private = run.trainer.networks_for(kind)
                if "teacher" in private.module:
                    found[f"teachers.{kind}"] = private.description()
        run.about = {"networks": found, "data": _data(run) if run.world.is_root else {}}
    return run.about


def _data(run: Simulation) -> dict[str, Any]:
    shape: Any = run.task.input_shape
    if isinstance(shape, Texts):
        shape = shape._asdict()
    elif not isinstance(shape, tuple | list) or not all(isinstance(side, int) for side in shape):
        shape = None  # of a task of one's own: it is not kept
    arrays = {
        name: [str(array.dtype), list(array.shape[1:])] for name, array in run.data.train.items() if name != TOKENIZER
    }
    return {"input_shape": shape, "num_classes": run.task.num_classes, "meta": run.data.meta, "arrays": arrays}


def _name(clients: list[int]) -> str:
    return f"clients-{clients[0]:06d}-{clients[-1]:06d}.safetensors"


def restore(run: Simulation, manifest: Manifest) -> None:
    """Load from a checkpoint the states of this process's clients and this process's part of the server state.

    saved_state.check() has accepted the checkpoint before.
    """
    if run.exchange:
        with opened(manifest.folder / SERVER) as file:
            server = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - no mapping
        run.exchange.replica.copy_(server.pop("replica"))
        kept = states(run.exchange)
        for key, tensor in server.items():
            part, _, name = key.partition("/")
            if part in kept:
                kept[part][name] = tensor.to(run.device)
    for file in manifest.files:
        if not run.clients.keys().isdisjoint(file["clients"]):
            _restore_clients(run, manifest.folder / file["name"], file["clients"])


def _restore_clients(run: Simulation, path: Path, ids: list[int]) -> None:
    with opened(path) as file:
        for key in file.keys():  # noqa: SIM118 - no mapping
            client, _, name = key.partition("/")
            if int(client) in run.clients:
                run.clients[int(client)].tensors[name] = file.get_tensor(key).clone().to(run.device)
    for client in ids:
        if client in run.clients:
            run.schedule.release(run.clients[client])


def states(exchange: Exchange) -> dict[str, dict[str, Tensor]]:
    """Return the codec's states that belong to no client: the receiver's on every process, the server's on rank 0."""
    states = {"downlink": exchange.downlink_state}
    if exchange.server:
        states |= {"sender": exchange.server.codec_state, "uplink": exchange.server.uplink_state}
    return states
