"""The manifest of a checkpoint: its run, its number of rounds, its files with their digests, and their networks.

A digest detects damage but not manipulation, because anyone who changes a manifest can also change its digest. So the
content is validated before use: a manifest names regular files in its own folder, each once, and every client belongs
to one file.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from fedkd_mpi.errors import UserError, shown

FORMAT = 2
FILE = "manifest.json"
BLOCK = 2**20  # bytes that are read at a time
DATA = "data.safetensors"  # what networks read with, beside the manifest's own `data`: the tokenizer
ROUND, BEST = "round-", "best-"  # the state after a round; the networks of the best one
NUMBER = re.compile("[0-9]{6,12}", re.ASCII)
LARGEST = 2**28  # bytes of a manifest at most; enough for ten million clients
NAME = re.compile(r"(server|data)\.safetensors|clients-[0-9]{6,12}-[0-9]{6,12}\.safetensors", re.ASCII)
KEYS = {"name": str, "bytes": int, "sha256": str, "clients": list}


@dataclass(frozen=True)
class Manifest:
    """A checkpoint on disk: its folder, its completed rounds, the run that it belongs to, and its files.

    Each file is {"name", "bytes", "sha256", "clients": [ids]}. `networks` describes the flat vectors: "student" that of
    "replica", "teachers.K" those of "CLIENT/private" of clients with the architecture K (models/flat.py, description).
    `data` is what networks were built from and read: "input_shape", "num_classes", "meta" of the data set and its
    training arrays' types and shapes.
    """

    folder: Path
    rounds: int
    owner: dict[str, Any]
    files: list[dict[str, Any]]
    networks: dict[str, Any]
    data: dict[str, Any]


def folder_of(log: Path) -> Path:
    """Return the folder of the checkpoints of a log."""
    return log.parent / f"{log.name}.checkpoints"


def path_of(folder: Path, kind: str, rounds: int) -> Path:
    """Return the folder of the checkpoint of a kind, ROUND or BEST, after so many rounds."""
    return folder / f"{kind}{rounds:06d}"


def kept(folder: Path, kind: str) -> list[int]:
    """Return the completed rounds of every existing checkpoint of a kind, the newest first."""
    names = {path.name for path in folder.glob(f"{kind}*") if path.is_dir()}
    found = [int(name) for name in (name.removeprefix(kind) for name in names) if NUMBER.fullmatch(name)]
    return sorted((number for number in found if path_of(folder, kind, number).name in names), reverse=True)


def read(folder: Path) -> Manifest:
    """Return the manifest of a checkpoint folder; raises UserError naming the file if it is missing or damaged."""
    path = folder / FILE
    try:
        if folder.is_symlink():
            raise UserError(f"{folder} is a link, not a checkpoint folder")
        with open_plain(path) as file:
            if os.fstat(file.fileno()).st_size > LARGEST:
                raise UserError(f"{path} is damaged: it is larger than any manifest")
            tree = json.loads(file.read().decode())
        expected = tree.pop("sha256")
        whole = expected == digest(_canonical(tree)) and tree["format"] == FORMAT
    except OSError as error:
        raise UserError(f"cannot read the checkpoint {path}: {error.strerror}") from None
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise UserError(f"{path} is damaged") from None
    if not whole:
        raise UserError(f"{path} is damaged or not of format {FORMAT}")
    _check(path, tree)
    return Manifest(folder, tree["rounds"], tree["owner"], tree["files"], tree["networks"], tree["data"])


def write(
    folder: Path, rounds: int, owner: Mapping[str, Any], files: Sequence[Mapping[str, Any]], about: Mapping[str, Any]
) -> None:
    """Write the manifest of a checkpoint folder to disk, `about` being its networks and data; raises OSError."""
    tree = {"format": FORMAT, "rounds": rounds, "owner": owner, "files": files, "networks": {}, "data": {}, **about}
    with (folder / FILE).open("w", encoding="utf-8") as file:
        json.dump(tree | {"sha256": digest(_canonical(tree))}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def open_plain(path: Path) -> BinaryIO:
    """Open a regular file for reading; raises OSError for a link, a pipe or a device."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(0, "not a regular file")
    return os.fdopen(descriptor, "rb")


def digest(data: bytes) -> str:
    """Return the SHA-256 digest of the content of a file, as hexadecimal text."""
    return hashlib.sha256(data).hexdigest()


def verify(folder: Path, file: Mapping[str, Any]) -> None:
    """Raise UserError naming the file if its size or digest differs from the manifest; `file` is its entry there."""
    path = folder / file["name"]
    try:
        with open_plain(path) as stream:
            whole = os.fstat(stream.fileno()).st_size == file["bytes"]
            whole = whole and _digest_of(stream) == file["sha256"]
    except OSError as error:
        raise UserError(f"cannot read the checkpoint {path}: {error.strerror}") from None
    if not whole:
        raise UserError(f"{path} is damaged: it does not match its manifest")


def _digest_of(stream: BinaryIO) -> str:
    found = hashlib.sha256()  # hashlib.file_digest came with Python 3.11
    while block := stream.read(BLOCK):
        found.update(block)
    return found.hexdigest()


def _canonical(tree: dict[str, Any]) -> bytes:
    return json.dumps(tree, sort_keys=True).encode()


def _check(path: Path, tree: Mapping[str, Any]) -> None:
    """Raise UserError naming the first key with an invalid value."""
    kinds = {"rounds": int, "owner": dict, "files": list, "networks": dict, "data": dict}
    for key, kind in kinds.items():
        if type(tree.get(key)) is not kind:
            raise UserError(f"{path}: {key} is {shown(tree.get(key))}, not of type {kind.__name__}")
    if path.parent not in [path_of(path.parent.parent, kind, tree["rounds"]) for kind in (ROUND, BEST)]:
        raise UserError(f"{path}: rounds is {tree['rounds']}, but the folder is {path.parent.name}")
    names: set[str] = set()
    clients: set[int] = set()
    for index, file in enumerate(tree["files"]):
        key = f"files.{index}"
        if not isinstance(file, dict) or file.keys() != KEYS.keys():
            raise UserError(f"{path}: {key} is {shown(file)}; it must have the keys {', '.join(KEYS)}")
        for name, kind in KEYS.items():
            if type(file[name]) is not kind:
                raise UserError(f"{path}: {key}.{name} is {shown(file[name])}, not of type {kind.__name__}")
        if not NAME.fullmatch(file["name"]) or file["name"] in names:
            raise UserError(f"{path}: {key}.name is {shown(file['name'])}, which is invalid or given twice")
        own = file["clients"]
        if not all(type(client) is int and client >= 0 for client in own) or not clients.isdisjoint(own):
            raise UserError(f"{path}: {key}.clients contains an invalid client, or a client of another file")
        if len(set(own)) < len(own) or bool(own) != file["name"].startswith("clients"):
            raise UserError(f"{path}: {key}.clients does not match {file['name']}")
        names.add(file["name"])
        clients.update(own)
