"""What a part of a run remembers from round to round, declared: a checkpoint is compared with it before it is used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from fedkd_mpi.errors import shown

if TYPE_CHECKING:
    from torch import Tensor


class Kind(NamedTuple):
    """Type and shape of a tensor; None is a size that the data decide."""

    shape: tuple[int | None, ...]
    dtype: str = "float32"

    def fits(self, other: Kind) -> bool:
        """Tell whether a tensor of another kind, of which all sizes are known, is of this one."""
        sizes = zip(self.shape, other.shape, strict=False)
        same = len(self.shape) == len(other.shape) and all(own in (None, size) for own, size in sizes)
        return same and self.dtype == other.dtype

    def __str__(self) -> str:
        return f"{self.dtype} [{', '.join('any' if size is None else str(size) for size in self.shape)}]"


class Memory(NamedTuple):
    """The tensors that a state holds once it has been used; `complete` says that there are no others."""

    tensors: Mapping[str, Kind]
    complete: bool = True


def like(tensor: Tensor) -> Kind:
    """Return the kind of a tensor."""
    return Kind(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))


def with_prefix(prefix: str, tensors: Mapping[str, Kind]) -> dict[str, Kind]:
    """Return the tensors under longer names."""
    return {f"{prefix}{name}": kind for name, kind in tensors.items()}


def fault(saved: Mapping[str, Kind], memory: Memory, prefix: str = "", *, required: bool) -> str | None:
    """Return how a state differs from a memory, to be said behind the name of its file, or None if it does not.

    `prefix` is that of the tensors' names in the file. A state that has not been used is empty; with `required` it must
    have been used.
    """
    for name in sorted(saved):
        kind, called = memory.tensors.get(name), shown(f"{prefix}{name}")
        if kind is None and memory.complete:
            return f" contains the tensor {called}, which this run does not have"
        if kind is not None and not kind.fits(saved[name]):
            return f" contains the tensor {called} as {saved[name]}, but it is {kind} in this run"
    missing = sorted(memory.tensors.keys() - saved.keys())
    return f": the tensor {shown(prefix + missing[0])} is missing" if missing and (required or saved) else None
