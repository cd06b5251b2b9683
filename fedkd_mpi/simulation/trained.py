"""Trained networks out of a log's checkpoints, as modules: which checkpoints there are, and what one of them holds.

A checkpoint says itself how its flat vectors are laid out and what the networks read (see manifest.py), so that neither
the data nor MPI is needed. What does not come out as the checkpoint says is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from fedkd_mpi import costlog, methods, tasks
from fedkd_mpi.client.trainer import PRIVATE
from fedkd_mpi.common.torch_streams import torch_scope
from fedkd_mpi.config.methods import has_student
from fedkd_mpi.config.schema import Config
from fedkd_mpi.datasets.tokens import TOKENIZER
from fedkd_mpi.errors import UserError
from fedkd_mpi.fault_tolerance import manifest as manifests
from fedkd_mpi.fault_tolerance.manifest import BEST, DATA, ROUND, Manifest
from fedkd_mpi.models.output import Texts
from fedkd_mpi.models.state_file import digest_of
from fedkd_mpi.simulation import trust
from fedkd_mpi.simulation.saved_state import SERVER, opened
from fedkd_mpi.tasks import Task

Round = int | str  # completed rounds, or "last" or "best"


class Shapes(NamedTuple):
    """What networks are built from, in the place of a task."""

    input_shape: Any
    num_classes: int


@dataclass(frozen=True)
class Source:
    """A checkpoint of a log: the run's configuration and attributes, and the rounds that were logged."""

    log: Path
    attrs: Mapping[str, Any]
    config: Config
    manifest: Manifest

    @property
    def shapes(self) -> Shapes:
        """What the run's networks were built from; raises UserError where the task's input shape was not kept."""
        shape = self.manifest.data["input_shape"]
        if shape is None:
            raise UserError(
                f"{self.log}: the input_shape of task={self.config.task.name} is none that a checkpoint can hold"
            )
        shape = Texts(**shape) if isinstance(shape, dict) else tuple(shape)
        return Shapes(shape, self.manifest.data["num_classes"])

    def tokenizer(self) -> np.ndarray | None:
        """Return the JSON of the data set's tokenizer, uint8, or None where there is none."""
        if all(file["name"] != DATA for file in self.manifest.files):
            return None
        return self.tensors(DATA, [TOKENIZER])[TOKENIZER].numpy()

    def tensors(self, name: str, keys: Sequence[str]) -> dict[str, Tensor]:
        """Return tensors of a file of the checkpoint; keys that it lacks are left out. Raises UserError on damage."""
        entry = next(file for file in self.manifest.files if file["name"] == name)
        manifests.verify(self.manifest.folder, entry)
        with opened(self.manifest.folder / name) as file:
            there = set(file.keys())
            return {key: file.get_tensor(key) for key in keys if key in there}


def find(log: str | Path, which: Round = "last", *, trust_log: bool = False) -> Source:
    """Return a checkpoint of a log: the "last" one, that of the "best" round, or the one after so many rounds.

    Raises UserError naming what there is where that one is not kept, and the code that the log names, where it is not
    trusted.
    """
    log = Path(log)
    with costlog.open(log) as opened_log:
        attrs, logged = opened_log.attrs, opened_log.rounds_completed
    config = trust.configuration_in(log, attrs)
    named = {
        key: name for key, name in trust.own_parts(config).items() if not key.startswith(("data.", "compression."))
    }
    if named and not trust_log:
        told = ", ".join(f"{key}={name}" for key, name in named.items())
        raise UserError(f"{log} names code to run, {told}: if it is yours, pass --trust-log (trust_log=True)")
    folder = manifests.folder_of(log)
    last = [rounds for rounds in manifests.kept(folder, ROUND) if rounds <= logged]
    best = manifests.kept(folder, BEST)
    if which == "last" and last:
        path = manifests.path_of(folder, ROUND, last[0])
    elif which == "best" and best:
        path = manifests.path_of(folder, BEST, best[0])
    elif which in last:
        path = manifests.path_of(folder, ROUND, int(which))
    elif which in best:
        path = manifests.path_of(folder, BEST, int(which))
    else:
        there = [f"after round {rounds}" for rounds in sorted(last)] + [
            f"best, after round {number}" for number in best
        ]
        asked = which if isinstance(which, str) else f"after round {which}"
        raise UserError(
            f"{log} has no checkpoint '{asked}'; kept in {folder}: {', '.join(there) or 'none'}"
            " (checkpoint.last and checkpoint.best say what is kept)"
        )
    manifest = manifests.read(path)
    owner = {"configuration": trust.identity_in(attrs), "started": attrs["started"]}
    if manifest.owner != owner:
        raise UserError(f"{path / manifests.FILE} belongs to another run than {log}")
    return Source(log, attrs, config, manifest)


def student(source: Source) -> nn.Module:
    """Return the global student of a checkpoint, ready for inference; raises UserError where there is none."""
    config, described = source.config, source.manifest.networks.get("student")
    if described is None or not has_student(config.method.name):
        raise UserError(
            f"{source.log}: method={config.method.name} has no student: name a client's teacher (--client N)"
        )
    if config.server.buffers == "local" and described["buffers"]:
        raise UserError(
            f"{source.log}: with server.buffers=local the student's statistics ({described['buffers'][0]}, ...) are"
            " each client's own, and the global student is no whole network; server.buffers=average makes it one"
        )
    method = methods.build(config, cast("Task", source.shapes))
    with torch_scope(config.seed, "student"):
        module = methods.new_student(config, method)
    found = source.tensors(SERVER, ["replica"])
    if "replica" not in found:
        raise UserError(f"{source.manifest.folder / SERVER} lacks the tensor replica, the global student")
    _fill(module, _named(found["replica"], None, described), described, "", source)
    return _ready(module, source)


def teacher(source: Source, client: int) -> nn.Module:
    """Return a client's teacher out of a checkpoint, ready for inference; raises UserError where there is none."""
    config, log = source.config, source.log
    if config.averages:
        raise UserError(f"{log}: method={config.method.name} has no teachers: name the student (--student)")
    if not 0 <= client < config.num_clients:
        raise UserError(f"{log} has clients 0 to {config.num_clients - 1}, no client {client}")
    files = [file["name"] for file in source.manifest.files if client in file["clients"]]
    if not files:
        kept = "trained" if any(file["clients"] for file in source.manifest.files) else "kept (checkpoint.best=all)"
        raise UserError(f"{source.manifest.folder}: client {client} was not {kept} up to this round")
    architecture = config.architecture(client)
    described = source.manifest.networks[f"teachers.{architecture}"]
    method = methods.build(config, cast("Task", source.shapes))
    with torch_scope(config.seed, PRIVATE):
        module = methods.new_private(config, method, architecture)["teacher"]
    keys = [f"{client}/private", f"{client}/others.private"]
    found = source.tensors(files[0], keys)
    if keys[0] not in found:
        raise UserError(f"{source.manifest.folder / files[0]} lacks the tensor {keys[0]}")
    _fill(module, _named(found[keys[0]], found.get(keys[1]), described), described, "teacher.", source)
    return _ready(module, source)


def _named(flat: Tensor, others: Tensor | None, described: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors that a description finds in flat vectors, by all their names, row-major."""
    tensors: dict[str, Tensor] = {}
    if flat.numel() != described["numbers"]:
        raise UserError(
            f"the vector of a network holds {flat.numel()} numbers, its manifest says {described['numbers']}"
        )
    for layer in described["layers"]:
        view = torch.as_strided(flat, layer["shape"], layer["strides"], layer["offset"])
        tensors |= dict.fromkeys(layer["names"], view.contiguous())
    if others is None:
        return tensors
    for other in described["others"]:
        kind = getattr(torch, other["dtype"])
        size = int(np.prod(other["shape"], dtype=np.int64)) * kind.itemsize
        part = others[other["byte"] : other["byte"] + size].clone().view(kind).view(other["shape"])
        tensors |= dict.fromkeys(other["names"], part)
    return tensors


def _fill(
    module: nn.Module, tensors: Mapping[str, Tensor], described: Mapping[str, Any], prefix: str, source: Source
) -> None:
    """Give a new module of the same architecture the trained tensors, each of which must fit; the others must be as
    they were in the run."""
    own = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
    trained = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    frozen = {
        name.removeprefix(prefix): digest for name, digest in described["frozen"].items() if name.startswith(prefix)
    }
    where = f"{source.manifest.folder / manifests.FILE}: the network"
    if unknown := sorted((trained.keys() | frozen.keys()) - own.keys()):
        raise UserError(f"{where} has {unknown[0]}, which this version of the package or of your code does not build")
    for name, tensor in own.items():
        if name in trained:
            if trained[name].shape != tensor.shape:
                shapes = list(trained[name].shape), list(tensor.shape)
                raise UserError(f"{where}'s {name} is {shapes[0]}, and {shapes[1]} in the network that is built here")
            tensor.data.copy_(trained[name])
        elif name in frozen and digest_of(tensor) != frozen[name]:
            raise UserError(
                f"{where}'s frozen tensor {name} has other values here than in the run: it comes from the files that"
                " teacher.path, student.path or init name, or is drawn by this version of torch"
            )
        elif name not in frozen and tensor.requires_grad and tensor.numel():
            raise UserError(f"{where} lacks {name}, which this version of the package or of your code builds")


def _ready(module: nn.Module, source: Source) -> nn.Module:
    module.eval()
    object.__setattr__(module, "preprocess", preprocessing(source))
    return module


def preprocessing(source: Source) -> Callable[[Any], Any]:
    """Return what makes the network's input of samples as the data set yields them: the task's `preprocess`."""
    arrays = {name: np.zeros((0, *shape), kind) for name, (kind, shape) in source.manifest.data["arrays"].items()}
    tokenizer = source.tokenizer()
    if tokenizer is not None:
        arrays[TOKENIZER] = tokenizer
    task = tasks.make(source.config.task.name, source.manifest.data["meta"], arrays, source.config.task.options())
    own = getattr(task, "preprocess", None)
    if own is None:
        raise_at_call = (
            f"task={source.config.task.name} has no preprocess(raw), which makes a network's input of raw samples"
        )

        def refuse(_: Any) -> Any:
            raise UserError(raise_at_call)

        return refuse
    return cast("Callable[[Any], Any]", own)
