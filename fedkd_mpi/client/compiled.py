"""A method's loss compiled by torch.compile, for networks so small that the launch overhead of operations dominates."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from fedkd_mpi.errors import UserError
from fedkd_mpi.models.output import Texts


def compiled(loss: Callable[..., Any], device: str, input_shape: Any) -> Callable[..., Any]:
    """Return the compiled loss; torch compiles it at its first call (about 20 s), on a GPU with CUDA graphs.

    It is compiled for one batch size. Raises UserError naming the key `compile` for texts, whose lengths vary, and if
    torch's compiler backend (g++, or Triton on a GPU) is missing.
    """
    if isinstance(input_shape, Texts):
        raise UserError("compile=true needs inputs of one size, but the lengths of texts vary; set compile=false")
    import torch

    on_cpu = device == "cpu"
    if on_cpu and not shutil.which(os.environ.get("CXX", "g++")):
        raise UserError("compile=true needs a C++ compiler on every node: install g++, or set compile=false")
    if not on_cpu and not find_spec("triton"):
        raise UserError("compile=true on a GPU needs Triton: pip install triton, or set compile=false")
    # One thread per kernel: with more, the order of sums would depend on the number of threads.
    options: dict[str, Any] = {"cpp.threads": 1} if on_cpu else {"triton.cudagraphs": True}
    return torch.compile(loss, dynamic=False, options=options)
