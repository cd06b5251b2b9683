"""Which tensors a checkpoint holds: those of a run as its files, and back, each checked against what the run has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedkd_mpi.errors import UserError, shown
from fedkd_mpi.fault_tolerance.checkpoint import Shard
from fedkd_mpi.fault_tolerance.manifest import FILE, Manifest

if TYPE_CHECKING:
    from torch import Tensor

    from fedkd_mpi.simulation.state import Simulation

SHARD_BYTES = 2**28  # files of about this size bound the memory that writing and reading take
SERVER = "server.safetensors"
SERVER_PARTS = ("downlink", "sender", "uplink")
OPTIMIZER = ("step", "momentum_buffer", "exp_avg", "exp_avg_sq")


def shards(run: Simulation) -> Iterator[Shard]:
    """Yield all that this process has to save, in files of bounded size."""
    if run.server:
        named = {f"{part}/{name}": tensor for part, state in states(run).items() for name, tensor in state.items()}
        yield Shard(SERVER, {"replica": run.replica, **named}, [])
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

    Raises UserError naming the file and the tensor that is missing, unexpected, or of another type or shape.
    """
    if run.student:
        path = manifest.folder / SERVER
        if all(file["name"] != SERVER for file in manifest.files):
            raise UserError(f"{manifest.folder / FILE}: {SERVER}, the global student, is missing in files")
        with _opened(path) as file:
            server = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - no mapping
        if "replica" not in server:
            raise UserError(f"{path}: the tensor replica, the global student, is missing")
        _require_like("replica", server["replica"], run.replica, path)
        run.replica.copy_(server.pop("replica"))
        kept = states(run)
        for key, tensor in server.items():
            part, _, name = key.partition("/")
            if part not in SERVER_PARTS or not name:
                raise UserError(f"{path} contains the tensor {shown(key)}, which no run writes")
            if part in kept:
                kept[part][name] = tensor.to(run.device)
    for file in manifest.files:
        if not run.clients.keys().isdisjoint(file["clients"]):
            _restore_clients(run, manifest.folder / file["name"], file["clients"])


def _restore_clients(run: Simulation, path: Path, ids: list[int]) -> None:
    with _opened(path) as file:
        for key in file.keys():  # noqa: SIM118 - no mapping
            client, _, name = key.partition("/")
            if not client.isdecimal() or int(client) not in ids or not name:
                raise UserError(f"{path} contains the tensor {shown(key)}, which belongs to none of its clients")
            if int(client) in run.clients:
                tensor, own = file.get_tensor(key).clone(), _own_tensor(run, int(client), name)
                if own is not None:
                    _require_like(key, tensor, own, path)
                run.clients[int(client)].tensors[name] = tensor.to(run.device)
    for client in ids:
        if client in run.clients:
            if "private" not in run.clients[client].tensors:
                raise UserError(f"{path}: the tensor {client}/private is missing")
            (run.work_queue or run.state_cache).release(run.clients[client])


def _own_tensor(run: Simulation, client: int, name: str) -> Tensor | None:
    """Return this run's tensor of the type and shape that a part of a client's state must have, None if unknown."""
    network = run.trainer.networks_for(client)
    if name == "private":
        return network.state
    if name == "buffers" and run.student:
        return run.student.local_buffers
    _, kind, key = name.split(".", 2) if name.startswith("optimizer.") and name.count(".") >= 2 else ("", "", "")
    vector = {"private": network, "student": run.student}.get(kind)
    if vector is None or key not in OPTIMIZER:
        return None
    return vector.trainable.detach()[0] if key == "step" else vector.trainable.detach()


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a safetensors file; keys() lists the names, get_tensor() reads one."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read the checkpoint {path}: {error}") from None


def _require_like(key: str, saved: Tensor, own: Tensor, path: Path) -> None:
    if saved.dim() == own.dim() == 1 and saved.shape != own.shape:
        raise UserError(f"{path} contains a network of {saved.numel()} numbers, this run's has {own.numel()} ({key})")
    if saved.dtype != own.dtype or saved.shape != own.shape:
        kinds = [f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}" for tensor in (saved, own)]
        raise UserError(f"{path}: {key} is {kinds[0]}, in this run {kinds[1]}")


def states(run: Simulation) -> dict[str, dict[str, Tensor]]:
    """Return the codec's states that belong to no client: the receiver's on every process, the server's on rank 0."""
    states = {"downlink": run.downlink_state}
    if run.server:
        states |= {"sender": run.server.codec_state, "uplink": run.server.uplink_state}
    return states
