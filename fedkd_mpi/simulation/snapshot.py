"""A run's tensors as the files of a checkpoint, and back; saved_state.py compares them with the run before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fedkd_mpi.fault_tolerance.checkpoint import Shard
from fedkd_mpi.fault_tolerance.manifest import Manifest
from fedkd_mpi.simulation.saved_state import SERVER, opened

if TYPE_CHECKING:
    from torch import Tensor

    from fedkd_mpi.simulation.state import Exchange, Simulation

SHARD_BYTES = 2**28  # files of about this size bound the memory that writing and reading take


def shards(run: Simulation) -> Iterator[Shard]:
    """Yield all that this process has to save, in files of bounded size."""
    if run.exchange and run.exchange.server:
        parts = states(run.exchange).items()
        named = {f"{part}/{name}": tensor for part, state in parts for name, tensor in state.items()}
        yield Shard(SERVER, {"replica": run.exchange.replica, **named}, [])
    tensors: dict[str, Tensor] = {}
    clients: list[int] = []
    size = 0
    for client in run.clients.values():
        state = client.copy()
        if not state:
            continue
        tensors |= {f"{client.id}/{name}": tensor for name, tensor in state.items()}
        clients.append(client.id)
        size += sum(tensor.nbytes for tensor in state.values())
        if size >= SHARD_BYTES:
            yield Shard(_name(clients), tensors, clients)
            tensors, clients, size = {}, [], 0
    if clients:
        yield Shard(_name(clients), tensors, clients)


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
