"""The manifest of a checkpoint: its run, its number of rounds, and its files with their digests.

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

FORMAT = 1
FILE = "manifest.json"
BLOCK = 2**20  # bytes that are read at a time
LARGEST = 2**28  # bytes of a manifest at most; enough for ten million clients
NAME = re.compile(r"server\.safetensors|clients-[0-9]{6,12}-[0-9]{6,12}\.safetensors", re.ASCII)
KEYS = {"name": str, "bytes": int, "sha256": str, "clients": list}


@dataclass(frozen=True)
class Manifest:
    """A checkpoint on disk: its folder, its completed rounds, the run that it belongs to, and its files.

    Each file is {"name", "bytes", "sha256", "clients": [ids]}.
    """

    folder: Path
    rounds: int
    owner: dict[str, Any]
    files: list[dict[str, Any]]


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
    return Manifest(folder, tree["rounds"], tree["owner"], tree["files"])


def write(folder: Path, rounds: int, owner: Mapping[str, Any], files: Sequence[Mapping[str, Any]]) -> None:
    """Write the manifest of a checkpoint folder to disk; raises OSError."""
    tree = {"format": FORMAT, "rounds": rounds, "owner": owner, "files": files}
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
    kinds = {"rounds": int, "owner": dict, "files": list}
    for key, kind in kinds.items():
        if type(tree.get(key)) is not kind:
            raise UserError(f"{path}: {key} is {shown(tree.get(key))}, not of type {kind.__name__}")
    if path.parent.name != f"round-{tree['rounds']:06d}":
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
