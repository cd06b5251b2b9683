"""Networks that start from a file: an export or a state_dict in safetensors, whose names and shapes are checked."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from fedkd_mpi.errors import UserError, shown


def start_from(module: nn.Module, path: Path, digest: str | None, key: str) -> None:
    """Give a module the values of a file, whose tensors have the names and shapes of its state_dict.

    `digest` is the SHA-256 that the configuration has of the file, `key` the file's key there. Raises UserError, one
    line, where the file is another one, or no safetensors, or a tensor is missing, too many, not finite or of another
    shape or type.
    """
    tensors = read(path, digest, key)
    own = module.state_dict()
    for what, names in (("lacks", own.keys() - tensors.keys()), ("has", tensors.keys() - own.keys())):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            why = "which the network has" if what == "lacks" else "which the network has not"
            raise UserError(f"{key}={shown(path)} {what} the tensor {shown(min(names))}{more}, {why}")
    for name, tensor in own.items():
        given = tensors[name]
        if given.shape != tensor.shape or given.is_floating_point() != tensor.is_floating_point():
            found, due = (f"{str(one.dtype).removeprefix('torch.')} {list(one.shape)}" for one in (given, tensor))
            raise UserError(f"{key}={shown(path)}: {shown(name)} is {found}, the network's is {due}")
        if given.is_floating_point() and not torch.isfinite(given).all():
            raise UserError(f"{key}={shown(path)}: {shown(name)} holds NaN or infinity")
    module.load_state_dict(tensors)


@lru_cache(maxsize=2)
def read(path: Path, digest: str | None, key: str) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file by name; raises UserError where it is none, or not that of `digest`."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        data = path.expanduser().read_bytes()
    except OSError as error:
        raise UserError(f"{key}={shown(path)}: cannot be read ({error.strerror})") from None
    if digest is not None and hashlib.sha256(data).hexdigest() != digest:
        raise UserError(f"{key}={shown(path)} is not the file of {key}_digest: it was changed since")
    try:
        return load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        if data.startswith(b"\x89HDF"):
            raise UserError(
                f"{key}={shown(path)} is a log: python -m fedkd_mpi.export writes a network of it to a file"
            ) from None
        line = " ".join(str(error).split())[:200]
        raise UserError(
            f"{key}={shown(path)} is no safetensors file ({line}); a state_dict becomes one with"
            " safetensors.torch.save_file(model.state_dict(), FILE)"
        ) from None


def digest_of(tensor: Tensor) -> str:
    """Return the SHA-256 of a tensor's values, row-major."""
    return hashlib.sha256(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data).hexdigest()
