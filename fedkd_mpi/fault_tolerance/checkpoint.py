"""Checkpoints: the state that a run keeps between rounds, stored by client id and independent of the processes.

A checkpoint is a folder `round-000012` (the number of completed rounds) beside the log, with safetensors files and one
manifest. It is written under another name and then renamed, so that it is complete or absent. The last two checkpoints
are kept. `best-000012` contains only the networks of the best round, by the same rules. Random streams are keyed by
round and client (common/random_streams.py) and have no position to save.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fedkd_mpi.errors import RunFault, UserError
from fedkd_mpi.fault_tolerance import manifest as manifests
from fedkd_mpi.fault_tolerance.manifest import BEST, ROUND, Manifest

if TYPE_CHECKING:
    from torch import Tensor

    from fedkd_mpi.communication.world import World

KEPT = 2  # checkpoints: if the newest is damaged, there is one before it
PARTIAL = ".partial-"
ABOUT = ("networks", "data")


class Shard(NamedTuple):
    """A file of a checkpoint: its name, its tensors by their names, and the clients whose states it holds."""

    name: str
    tensors: dict[str, Tensor]
    clients: list[int]


class Checkpoints:
    """The checkpoints of one log; `save` and `newest` are collective.

    `owner` identifies the run (digest of what its rounds depend on, start time); checkpoints of other runs are refused.
    """

    def __init__(self, log: Path, owner: Mapping[str, Any], world: World):
        self.folder = manifests.folder_of(log)
        self.owner, self.world = dict(owner), world

    def path(self, rounds: int, kind: str = ROUND) -> Path:
        """Return the folder of the checkpoint after `rounds` completed rounds."""
        return manifests.path_of(self.folder, kind, rounds)

    def rounds(self, kind: str = ROUND) -> list[int]:
        """Return the completed rounds of every existing checkpoint of a kind, the newest first."""
        return manifests.kept(self.folder, kind)

    def require_none(self) -> None:
        """Raise UserError if there are checkpoints of an earlier log."""
        if self.rounds() or self.rounds(BEST):
            raise UserError(f"{self.folder} contains checkpoints of an earlier run: remove it, or pass --overwrite")

    def require_writable(self) -> None:
        """Raise UserError if checkpoints cannot be written; called before a long start."""
        probe, new = self.folder / f"{PARTIAL}probe", not self.folder.exists()
        try:
            self._make_folder()
            probe.mkdir(exist_ok=True)
            probe.rmdir()
            if new:  # a run that is refused later must leave nothing behind
                self.folder.rmdir()
        except OSError as error:
            raise UserError(f"cannot write checkpoints to {self.folder}: {error.strerror}") from None

    def _make_folder(self) -> None:
        """Create the folder of the log's checkpoints for its owner alone: teachers may have learnt private data."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self.folder.mkdir(mode=0o700, exist_ok=True)

    def clear(self) -> None:
        """Remove the checkpoints of a log that a new log has replaced; raises UserError if they cannot be removed."""
        try:
            for start in (ROUND, BEST, PARTIAL):
                for left in self.folder.glob(f"{start}*"):
                    _remove(left)
            if self.folder.exists() and not self.folder.is_symlink() and not any(self.folder.iterdir()):
                self.folder.rmdir()
        except OSError as error:
            raise UserError(f"cannot remove the checkpoints in {self.folder}: {error.strerror}") from None

    def save(self, shards: Iterable[Shard], rounds: int, about: Mapping[str, Any], kind: str = ROUND) -> None:
        """Write what is to be kept after `rounds` completed rounds, all processes at once, and drop what it replaces.

        `shards` is the part of this process; each one becomes a file before the next one is asked for. `about` is what
        it tells of networks and data (see Manifest). Of `kind` ROUND the last two are kept, of BEST one. Raises
        RunFault naming the folder where it cannot be written; the checkpoints before stay as they are.
        """
        target, partial = self.path(rounds, kind), self.folder / f"{PARTIAL}{rounds:06d}"
        try:
            if self.world.is_root:
                for left in self.folder.glob(f"{PARTIAL}*"):
                    _remove(left)
            self.world.barrier()
            self._make_folder()
            partial.mkdir(exist_ok=True)
            files = [_write(partial, shard) for shard in shards]
            parts = self._collect({"files": files, **about})
            if parts is not None:
                everyone = [file for part in parts for file in part["files"]]
                told = {key: {k: v for part in parts for k, v in part.get(key, {}).items()} for key in ABOUT}
                manifests.write(partial, rounds, self.owner, everyone, told)
                self._put_in_place(partial, target)
                self._prune(rounds, kind)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)  # on a full disk the log needs the space
            kept = [number for number in self.rounds() if number != rounds]
            safe = f"the checkpoint after round {kept[0]} is complete" if kept else "the log is complete"
            text = f"cannot write the checkpoint {target}: {error.strerror}; {safe}"
            raise RunFault(text, round=max(rounds - 1, 0)) from error

    def newest(
        self, limit: int, trained: Callable[[int], set[int]], fits: Callable[[Manifest, set[int]], None]
    ) -> tuple[Manifest | None, list[str]]:
        """Return the newest valid checkpoint of at most `limit` rounds, and the reasons why newer ones were refused.

        `trained(rounds)` returns the clients whose states a checkpoint after that many rounds must contain.
        `fits(manifest, trained)` raises UserError if its tensors are not those of the run. Returns (None, []) if there
        are no checkpoints; raises UserError if there are some and none is valid.
        """
        refused: list[str] = []
        listed = self.world.from_root(json.dumps(self.rounds()) if self.world.is_root else None)
        for rounds in json.loads(listed):
            manifest = error = None
            try:
                manifest = manifests.read(self.path(rounds))
                self._check(manifest, limit, trained(manifest.rounds))
                fits(manifest, trained(manifest.rounds))
            except UserError as refusal:
                error = str(refusal)
            error = self.world.first_message(error)
            if error is None:
                return manifest, refused
            refused.append(error)
        if refused:
            raise UserError(f"{'; '.join(refused)}; remove {self.folder} to start again from round 1")
        return None, []

    def _check(self, manifest: Manifest, limit: int, trained: set[int]) -> None:
        path = manifest.folder / manifests.FILE
        if manifest.owner != self.owner:
            differs = [name for name in self.owner if manifest.owner.get(name) != self.owner[name]]
            raise UserError(f"{path} belongs to another run ({', '.join(differs)} differs)")
        if manifest.rounds > limit:
            raise UserError(f"{path} is after round {manifest.rounds}, but the log contains {limit} rounds")
        present = {client for file in manifest.files for client in file["clients"]}
        if missing := trained - present:
            raise UserError(f"{path}: client {min(missing)}, which was trained according to the log, is missing")
        for file in manifest.files[self.world.mpi_rank :: self.world.world_size]:
            manifests.verify(manifest.folder, file)

    def _collect(self, part: Mapping[str, Any]) -> list[dict[str, Any]] | None:
        import numpy as np

        text = np.frombuffer(json.dumps(part).encode() + b"\n", np.uint8)
        gathered = self.world.gather(text)
        return None if gathered is None else [json.loads(line) for line in gathered.tobytes().splitlines()]

    def _put_in_place(self, partial: Path, target: Path) -> None:
        _sync(partial)
        if target.exists():  # a damaged checkpoint, which the resumed run has not used
            target.rename(partial.with_name(f"{partial.name}-replaced"))
        partial.rename(target)
        _sync(self.folder)

    def _prune(self, rounds: int, kind: str) -> None:
        numbers = self.rounds(kind)
        kept = [number for number in numbers if number <= rounds][: KEPT if kind == ROUND else 1]
        for number in set(numbers) - set(kept):  # also newer ones, which were refused when the run was resumed
            gone = self.folder / f"{PARTIAL}{number:06d}-dropped"
            self.path(number, kind).rename(gone)  # so that a partly removed checkpoint is not reported as damaged
        for left in self.folder.glob(f"{PARTIAL}*"):
            _remove(left)


def _remove(path: Path) -> None:
    """Remove a folder, or a link or file of that name; the target of a link is not removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _write(folder: Path, shard: Shard) -> dict[str, Any]:
    from safetensors.torch import save

    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in shard.tensors.items()})
    with (folder / shard.name).open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return {"name": shard.name, "bytes": len(data), "sha256": manifests.digest(data), "clients": shard.clients}


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
