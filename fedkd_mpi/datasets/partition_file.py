"""Who holds what as a file, JSON or npz: each client's own training and test samples, by index or by id.

JSON: {"clients": [{"train": [0, 5], "test": [3]}, ...]}, and of what it was made for, where that is to be checked:
"samples", their number; "labels", the digest of their classes; "whole_owners": true, where no owner is divided.
npz: "train" and "test", all clients' one after another, "train_sizes" and "test_sizes" [clients], and the same three.

A sample is a number from 0 in the data set's training part, or its id. One that a client trains on is in no other
place; several clients may be tested on the same sample; a sample may be nobody's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedkd_mpi.common.machine import require_memory
from fedkd_mpi.datasets import expanded
from fedkd_mpi.datasets.npz_file import NpzFile
from fedkd_mpi.errors import UserError, shown

PARTS = ("train", "test")
STATED = ("samples", "labels", "whole_owners")
JSON_BYTES = 16  # of memory for a byte of JSON: a number of two digits is an object
Clients = list[tuple[np.ndarray, np.ndarray]]


class Samples(NamedTuple):
    """What is known of the training samples that a partition divides: classes, and where there are, ids and so on."""

    labels: np.ndarray
    ids: np.ndarray | None = None
    owners: np.ndarray | None = None
    documents: np.ndarray | None = None


def read(name: str, num_clients: int, samples: Samples, *, check_labels: bool = True) -> Clients:
    """Return every client's (train, test) samples, sorted int64 indices, as the file says; raises UserError."""
    path = expanded(name)
    divided, stated = _read_npz(path) if path.suffix == ".npz" else _read_json(path)
    if len(divided) != num_clients:
        raise UserError(f"{path}: divides the samples among {len(divided)} clients: set num_clients={len(divided)}")
    count = len(samples.labels)
    if stated.get("samples", count) != count:
        raise UserError(f"{path}: was made for {stated['samples']} training samples, but the data have {count}")
    if check_labels and "labels" in stated and stated["labels"] != _digest(samples.labels):
        raise UserError(
            f"{path}: was made for other data: the classes of the training samples, or their order, are not those of "
            'its "labels" (without which it is taken as it is)'
        )
    clients = [
        tuple(_indices(path, client, part, own[part], count, samples.ids) for part in PARTS)
        for client, own in enumerate(divided)
    ]
    found: Clients = [(train, test) for train, test in clients]
    _require_apart(path, found, count)
    if samples.documents is not None:
        _require_documents(path, found, samples.documents)
    if stated.get("whole_owners"):
        _require_owners(path, found, samples.owners)
    return found


def write(path: Path, clients: Clients, samples: Samples, *, overwrite: bool) -> None:
    """Write who holds what, as JSON or, where the name ends in .npz, as arrays; raises UserError."""
    require_target(path, overwrite)
    stated: dict[str, Any] = {"samples": len(samples.labels), "labels": _digest(samples.labels)}
    if samples.owners is not None and not len(_divided_owners(clients, samples.owners)):
        stated["whole_owners"] = True
    named = [[rows if samples.ids is None else samples.ids[rows] for rows in parts] for parts in clients]
    partial = path.with_name(f"{path.name}.part")
    try:
        with partial.open("wb") as stream:
            if path.suffix == ".npz":
                save: Callable[..., None] = np.savez_compressed
                arrays = {key: np.array(value) for key, value in stated.items()}
                for side, part in enumerate(PARTS):
                    arrays[part] = np.concatenate([parts[side] for parts in named])
                    arrays[f"{part}_sizes"] = np.array([len(parts[side]) for parts in named])
                save(stream, **arrays)
            else:
                stream.write(_json(stated, named).encode())
        partial.replace(path)
    except OSError as error:
        raise UserError(f"--save-partition {shown(path)}: {error.strerror}") from None


def require_target(path: Path, overwrite: bool) -> None:
    """Raise UserError where a partition cannot be written to a path."""
    if path.suffix not in (".json", ".npz"):
        raise UserError(f"--save-partition {shown(path)}: the name must end in .json or .npz")
    if not path.parent.is_dir():
        raise UserError(f"--save-partition {shown(path)}: there is no folder {shown(path.parent)}")
    if path.is_dir() or (path.exists() and not overwrite):
        raise UserError(f"--save-partition {shown(path)}: it exists; choose another name, or pass --overwrite")


def flat(clients: Clients) -> dict[str, np.ndarray]:
    """Return a partition as two arrays: "indices", and "sizes" int64 [clients, 2]."""
    indices = [rows for parts in clients for rows in parts]
    return {"indices": np.concatenate(indices), "sizes": np.array([list(map(len, parts)) for parts in clients])}


def unflat(indices: np.ndarray, sizes: np.ndarray) -> Clients:
    """Return the partition that flat() made two arrays of."""
    pieces = np.split(indices, np.cumsum(sizes.reshape(-1))[:-1])
    return list(zip(pieces[::2], pieces[1::2], strict=True))


def _read_json(path: Path) -> tuple[list[Mapping[str, Any]], Mapping[str, Any]]:
    try:
        if not path.is_file():
            raise UserError(f"partition.path={shown(path)}: no such file")
        require_memory(f"{path}: read as JSON", JSON_BYTES * path.stat().st_size, "write it as .npz")
        tree = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}); a partition is a .json or .npz file") from None
    clients = tree.get("clients") if isinstance(tree, dict) else None
    if not isinstance(clients, list) or not clients:
        raise UserError(f'{path}: has no list "clients" of {{"train": [...], "test": [...]}}')
    if unknown := [key for key in tree if key not in ("clients", *STATED)]:
        raise UserError(f"{path}: unknown key {shown(unknown[0])!r}; known are clients, {', '.join(STATED)}")
    _require_stated(path, tree)
    for client, own in enumerate(clients):
        if not isinstance(own, dict) or own.keys() != set(PARTS) or not all(isinstance(own[k], list) for k in PARTS):
            raise UserError(f'{path}: client {client} is not {{"train": [...], "test": [...]}}')
    return clients, tree


def _read_npz(path: Path) -> tuple[list[Mapping[str, Any]], Mapping[str, Any]]:
    if not path.is_file():
        raise UserError(f"partition.path={shown(path)}: no such file")
    file = NpzFile(path)
    known = (*PARTS, *(f"{part}_sizes" for part in PARTS))
    if unknown := [name for name in file.names if name not in (*known, *STATED)]:
        raise UserError(f"{path}: unknown array {shown(unknown[0])!r}; known are {', '.join((*known, *STATED))}")
    arrays = file.read([*known, *(name for name in STATED if name in file.names)])
    pieces = []
    for part in PARTS:
        values, sizes = arrays[part], arrays[f"{part}_sizes"]
        if sizes.ndim != 1 or sizes.dtype.kind not in "iu" or not len(sizes) or sizes.min() < 0:
            raise UserError(f"{path}: {part}_sizes is {sizes.dtype} {list(sizes.shape)}, expected a number per client")
        if values.ndim != 1 or sizes.astype(object).sum() != len(values):
            raise UserError(f"{path}: {part} is of shape {list(values.shape)}, and {part}_sizes add up to another sum")
        pieces.append(np.split(values, np.cumsum(sizes)[:-1]))
    if len(pieces[0]) != len(pieces[1]):
        raise UserError(f"{path}: train_sizes are of {len(pieces[0])} clients, test_sizes of {len(pieces[1])}")
    stated = {name: arrays[name].tolist() for name in STATED if name in arrays}
    _require_stated(path, stated)
    return [dict(zip(PARTS, own, strict=True)) for own in zip(*pieces, strict=True)], stated


def _require_stated(path: Path, stated: Mapping[str, Any]) -> None:
    for name, kind in (("samples", int), ("labels", str), ("whole_owners", bool)):
        if name in stated and type(stated[name]) is not kind:
            raise UserError(f"{path}: {name} is {shown(stated[name])}, expected a {kind.__name__}")


def _indices(
    path: Path, client: int, part: str, given: Sequence[Any] | np.ndarray, count: int, ids: np.ndarray | None
) -> np.ndarray:
    """Return a client's samples of a part as sorted indices; raises UserError naming the first that is none."""
    where = f"{path}: client {client}, {part}"
    if not len(given):
        return np.empty(0, np.int64)
    if isinstance(given, list) and len(kinds := {type(value) for value in given}) > 1:
        raise UserError(f"{where}: has {' and '.join(sorted(kind.__name__ for kind in kinds))}, expected one of them")
    values = np.asarray(given)
    if values.dtype.kind in "US":
        found = _by_id(where, values, ids)
    elif values.dtype.kind in "iu" and values.ndim == 1:
        wrong = np.flatnonzero((values < 0) | (values >= count))
        if wrong.size:
            raise UserError(f"{where}: sample {values[wrong[0]]}, but the training samples are 0..{count - 1}")
        found = values.astype(np.int64)
    else:
        raise UserError(f"{where}: begins with {shown(given[0])}, expected whole numbers below {count}, or ids")
    found = np.sort(found)
    twice = np.flatnonzero(found[1:] == found[:-1])
    if twice.size:
        raise UserError(f"{where}: sample {_named(found[twice[0]], ids)} is there twice")
    return found


def _by_id(where: str, values: np.ndarray, ids: np.ndarray | None) -> np.ndarray:
    if ids is None:
        raise UserError(f"{where}: names samples by id, which these data have none of (data.id): give their numbers")
    wanted = np.char.encode(values, "utf-8", "surrogateescape") if values.dtype.kind == "U" else values
    order = np.argsort(ids, kind="stable")
    place = np.minimum(np.searchsorted(ids, wanted, sorter=order), len(ids) - 1)
    wrong = np.flatnonzero(ids[order[place]] != wanted)
    if wrong.size:
        raise UserError(f"{where}: id {shown(str(values[wrong[0]]))!r} is none of the training samples'")
    return order[place].astype(np.int64)


def _require_apart(path: Path, clients: Clients, count: int) -> None:
    trains_on = np.full(count, -1)
    for client, (train, _) in enumerate(clients):
        if not len(train):
            raise UserError(f"{path}: client {client} has no training sample: leave it out")
        shared = train[trains_on[train] >= 0]
        if len(shared):
            raise UserError(
                f"{path}: sample {shared[0]} is for training of clients {trains_on[shared[0]]} and {client}"
            )
        trains_on[train] = client
    for client, (_, test) in enumerate(clients):
        seen = test[trains_on[test] >= 0]
        if len(seen):
            raise UserError(
                f"{path}: sample {seen[0]} is for the test of client {client} and for training of client "
                f"{trains_on[seen[0]]}"
            )


def _require_documents(path: Path, clients: Clients, documents: np.ndarray) -> None:
    for client, (train, test) in enumerate(clients):
        shared = np.intersect1d(documents[train], documents[test])
        if len(shared):
            raise UserError(
                f"{path}: client {client} trains on one part of document {shared[0]} and is tested on another: keep "
                "documents whole"
            )


def _require_owners(path: Path, clients: Clients, owners: np.ndarray | None) -> None:
    if owners is None:
        raise UserError(f"{path}: says whole_owners, but the data have no owners")
    divided = _divided_owners(clients, owners)
    if len(divided):
        raise UserError(f"{path}: says whole_owners, but samples of owner {divided[0]} are with several clients")


def _divided_owners(clients: Clients, owners: np.ndarray) -> np.ndarray:
    """Return the owners whose samples are with more than one client."""
    held = np.concatenate([np.unique(owners[np.concatenate(parts)]) for parts in clients])
    names, holders = np.unique(held, return_counts=True)
    return names[holders > 1]


def _named(index: int, ids: np.ndarray | None) -> str:
    return str(index) if ids is None else repr(ids[index].decode("utf-8", "replace"))


def _digest(labels: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(labels, "<i8").tobytes()).hexdigest()


def _json(stated: Mapping[str, Any], named: Sequence[Sequence[np.ndarray]]) -> str:
    """Return JSON text with a line for each client."""
    lines = [json.dumps({part: _listed(own[side]) for side, part in enumerate(PARTS)}) for own in named]
    head = "".join(f"{json.dumps(key)}: {json.dumps(value)},\n" for key, value in stated.items())
    return "{" + head + '"clients": [\n' + ",\n".join(lines) + "\n]}\n"


def _listed(values: np.ndarray) -> list[Any]:
    if values.dtype.kind == "S":
        return [value.decode("utf-8", "surrogateescape") for value in values.tolist()]
    return values.tolist()
