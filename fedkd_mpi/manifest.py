"""The manifest of a checkpoint: whose it is, after which round, and its files with their digests."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedkd_mpi.errors import UserError

FORMAT = 1
FILE = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """A checkpoint on disk: its folder, completed rounds, the run it belongs to, and its files.

    Each file is {"name", "bytes", "sha256", "clients": [ids]}.
    """

    folder: Path
    rounds: int
    owner: dict[str, Any]
    files: list[dict[str, Any]]


def read(folder: Path) -> Manifest:
    """Return the manifest of a checkpoint folder; raises UserError naming the file where it is missing or damaged."""
    path = folder / FILE
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        expected = tree.pop("sha256")
        whole = expected == digest(_canonical(tree)) and tree["format"] == FORMAT
    except OSError as error:
        raise UserError(f"cannot read the checkpoint {path}: {error.strerror}") from None
    except (ValueError, KeyError, AttributeError, TypeError):
        raise UserError(f"{path} is damaged") from None
    if not whole:
        raise UserError(f"{path} is damaged, or not of format {FORMAT}")
    return Manifest(folder, tree["rounds"], tree["owner"], tree["files"])


def write(folder: Path, rounds: int, owner: Mapping[str, Any], files: Sequence[Mapping[str, Any]]) -> None:
    """Write the manifest of a checkpoint folder to the disk; raises OSError."""
    tree = {"format": FORMAT, "rounds": rounds, "owner": owner, "files": files}
    with (folder / FILE).open("w", encoding="utf-8") as file:
        json.dump(tree | {"sha256": digest(_canonical(tree))}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _canonical(tree: dict[str, Any]) -> bytes:
    return json.dumps(tree, sort_keys=True).encode()


def digest(data: bytes) -> str:
    """Return the SHA-256 of a file's contents, as hexadecimal text."""
    return hashlib.sha256(data).hexdigest()


def verify(folder: Path, file: Mapping[str, Any]) -> None:
    """Raise UserError naming the file where it is not what the manifest says."""
    path = folder / file["name"]
    try:
        whole = path.stat().st_size == file["bytes"] and digest(path.read_bytes()) == file["sha256"]
    except OSError as error:
        raise UserError(f"cannot read the checkpoint {path}: {error.strerror}") from None
    if not whole:
        raise UserError(f"{path} is damaged: it is not what its manifest says")
