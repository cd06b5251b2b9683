"""portable_bits: code of torch, MKL, oneDNN and OpenBLAS that every processor with AVX2 has (docs/failures.md).

The libraries read the variables when they are loaded. So a command replaces itself, before MPI is initialised, by the
same command with the variables; a run in a process of somebody else's finds them there or is refused.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from fedkd_mpi.config.schema import Config
from fedkd_mpi.errors import UserError, shown
from fedkd_mpi.fault_tolerance import early_signals

SETTINGS = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "OPENBLAS_CORETYPE": "HASWELL",
}
WORDS = " ".join(f"{name}={value}" for name, value in SETTINGS.items())


def enter() -> None:
    """Replace this command by itself with SETTINGS in its environment, unless they are there.

    Its process id, its open files and the signals that it has received stay. Does nothing in a process that is no
    command of this package. Raises UserError if the environment asks for other code.
    """
    for name, value in SETTINGS.items():
        given = os.environ.get(name)
        if given is not None and given.casefold() != value.casefold():
            raise UserError(
                f"portable_bits=true needs {name}={value}, but the environment has {shown(given)}: unset it"
            )
    if early_signals.listening and not SETTINGS.keys() <= os.environ.keys():
        early_signals.pass_on()
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **SETTINGS})


def require(config: Config) -> None:
    """Raise UserError if this process does not compute with portable code although the configuration asks for it."""
    if not config.portable_bits:
        return
    at_start = _environment_at_start()
    for name, value in SETTINGS.items():
        for variables in (at_start, os.environ):
            if variables.get(name, "").casefold() != value.casefold():
                raise UserError(f"portable_bits=true needs these variables before Python starts: export {WORDS}")
    import torch

    if (found := torch.backends.cpu.get_cpu_capability()) != "AVX2":
        raise UserError(f"portable_bits=true needs a processor with AVX2, but torch computes with {found} here")
    if config.device == "auto" and torch.cuda.is_available():
        raise UserError("portable_bits=true is about processors, and device=auto takes a GPU here: set device=cpu")


def _environment_at_start() -> dict[str, str]:
    """Return the variables with which this process was started, which libraries may have read before now."""
    text = Path("/proc/self/environ").read_bytes().decode(errors="surrogateescape")
    return dict(pair.split("=", 1) for pair in text.split("\0") if "=" in pair)
