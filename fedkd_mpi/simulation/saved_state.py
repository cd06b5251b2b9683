"""The kind of every tensor that a checkpoint of a run holds: one of another kind is refused before it is used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedkd_mpi.client.loss_scale import REMEMBERED
from fedkd_mpi.common.remembered import Kind, Memory, fault, like, with_prefix
from fedkd_mpi.errors import UserError, shown
from fedkd_mpi.fault_tolerance.manifest import FILE, Manifest

if TYPE_CHECKING:
    from fedkd_mpi.config.training import ServerConfig
    from fedkd_mpi.simulation.state import Exchange, Simulation

SERVER = "server.safetensors"
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool", "U8": "uint8"} | {
    f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)
}


def check(run: Simulation, manifest: Manifest, trained: set[int]) -> None:
    """Raise UserError naming the file and the first tensor that this run does not know, lacks, or has of another kind.

    Looks at the server's file and at those of this process's clients, without reading a tensor. `trained` are the
    clients that have trained before the checkpoint.
    """
    if run.exchange:
        if all(file["name"] != SERVER for file in manifest.files):
            raise UserError(f"{manifest.folder / FILE}: {SERVER}, the global student, is missing in files")
        _check_server(run, run.exchange, manifest.folder / SERVER, used=bool(trained))
    for file in manifest.files:
        if not run.clients.keys().isdisjoint(file["clients"]):
            _check_clients(run, manifest.folder / file["name"], file["clients"], trained)


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open a file of tensors: names by keys(), each read by get_tensor(); raises UserError where it is none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read the checkpoint {path}: {error}") from None


def of_client(run: Simulation, client: int) -> Memory:
    """Return what a client's state holds once it has trained."""
    network = run.trainer.networks_for(client)
    kinds = {"private": like(network.state)}
    trained = [("private", network, run.trainer.private_optimizer)]
    if run.exchange:
        student = run.exchange.student
        trained.append(("student", student, run.trainer.student_optimizer))
        if student.local_buffers is not None:
            kinds["buffers"] = like(student.local_buffers)
        kinds |= with_prefix("method.", run.method.remembers(student))
    for name, vector, optimizer in trained:
        kinds |= {f"others.{name}": like(vector.others)} if vector.others.numel() else {}
        if not run.config.optimizer.renew:
            kinds |= with_prefix(f"optimizer.{name}.", optimizer.remembers())
    if run.config.precision == "float16":
        kinds |= with_prefix("scaler.", REMEMBERED)
    codec = run.exchange.codec.sender_memory() if run.exchange else Memory({})
    return Memory(kinds | with_prefix("codec.", codec.tensors), codec.complete)


def of_server(exchange: Exchange, settings: ServerConfig) -> dict[str, Memory]:
    """Return what the parts of the server's file hold once a round had an update."""
    codec, answer = exchange.codec, exchange.codec.downlink()
    received = answer.receiver_memory()
    kept = dict(received.tensors) | dict.fromkeys(settings.keeps, like(exchange.student.trainable))
    return {
        "downlink": Memory(kept, received.complete),
        "sender": answer.sender_memory(),
        "uplink": codec.receiver_memory(),
    }


def _check_server(run: Simulation, exchange: Exchange, path: Path, *, used: bool) -> None:
    saved = _kinds(path)
    replica = {name: kind for name, kind in saved.items() if name == "replica"}
    _require(path, fault(replica, Memory({"replica": like(exchange.replica)}), required=True))
    parts = of_server(exchange, run.config.server)
    for key in saved.keys() - replica.keys():
        if key.partition("/")[0] not in parts:
            raise UserError(f"{path} contains the tensor {shown(key)}, which no run writes")
    for part, memory in parts.items():
        _require(path, fault(_under(saved, f"{part}/"), memory, f"{part}/", required=used))


def _check_clients(run: Simulation, path: Path, clients: list[int], trained: set[int]) -> None:
    saved = _kinds(path)
    for key in saved:
        name, slash, _ = key.partition("/")
        if not slash or not name.isascii() or not name.isdecimal() or int(name) not in clients:
            raise UserError(f"{path} contains the tensor {shown(key)}, which belongs to none of its clients")
    for client in run.clients.keys() & set(clients):
        memory = of_client(run, client)
        if client not in trained:  # its teacher alone was scored
            first = {name: kind for name, kind in memory.tensors.items() if name in ("private", "others.private")}
            memory = Memory(first)
        own = _under(saved, f"{client}/")
        known = {name: kind for name, kind in own.items() if name in memory.tensors or not _undeclared(run, name)}
        _require(path, fault(known, Memory(memory.tensors), f"{client}/", required=True))


def _undeclared(run: Simulation, name: str) -> bool:
    """Whether a user's own codec or optimiser, which need not say all that it remembers, may have such a tensor."""
    if name.startswith("codec."):
        return run.exchange is not None and not run.exchange.codec.sender_memory().complete
    for network, optimizer in zip(("private", "student"), run.trainer.in_training(), strict=False):
        if name.startswith(prefix := f"optimizer.{network}."):
            return optimizer[1].admits(name.removeprefix(prefix))
    return False


def _kinds(path: Path) -> dict[str, Kind]:
    with opened(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        return {
            name: Kind(tuple(part.get_shape()), DTYPES.get(part.get_dtype(), part.get_dtype()))
            for name, part in slices.items()
        }


def _under(kinds: Mapping[str, Kind], prefix: str) -> dict[str, Kind]:
    return {name[len(prefix) :]: kind for name, kind in kinds.items() if name.startswith(prefix)}


def _require(path: Path, wrong: str | None) -> None:
    if wrong:
        raise UserError(f"{path}{wrong}")
