"""A method's loss through torch.compile, for networks so small that starting operations takes longer than they do."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from fedkd_mpi.errors import UserError
from fedkd_mpi.models.output import Texts


def compiled(loss: Callable[..., Any], device: str, input_shape: Any) -> Callable[..., Any]:
    """Return the loss as torch compiles it at its first call (some 20 s): on a GPU its launches become CUDA graphs.

    Compiled is one size of batch. Raises UserError, naming the key `compile`, where that cannot do: for texts, which
    come in many lengths, and where what torch compiles with is missing.
    """
    if isinstance(input_shape, Texts):
        raise UserError("compile=true is for inputs of one size, and texts come in many lengths; set compile=false")
    import torch

    on_cpu = device == "cpu"
    if on_cpu and not shutil.which(os.environ.get("CXX", "g++")):
        raise UserError("compile=true needs a C++ compiler on every node: install g++, or set compile=false")
    if not on_cpu and not find_spec("triton"):
        raise UserError("compile=true on a GPU needs Triton: pip install triton, or set compile=false")
    # one thread a kernel: with more, the order of sums would depend on how many there are
    options = {"cpp.threads": 1} if on_cpu else {"triton.cudagraphs": True}
    return torch.compile(loss, dynamic=False, options=options)
