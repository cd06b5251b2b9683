"""fedkd COMMAND, or python -m fedkd_mpi COMMAND: one entry to all commands; without arguments it lists them.

fedkd run rounds=20                      the same as python -m fedkd_mpi.run rounds=20
mpirun -n 33 fedkd run                   the same on 33 ranks
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

# Command -> its module and what it does. The modules are imported when they are used.
COMMANDS = {
    "run": ("fedkd_mpi.run", "simulate a federation and log every exchanged byte"),
    "report": ("fedkd_mpi.report.__main__", "tables, plots and replays from logs"),
    "sweep": ("fedkd_mpi.sweep", "run a list or grid of configurations"),
    "export": ("fedkd_mpi.export", "write a trained network to a file"),
    "doctor": ("fedkd_mpi.doctor", "check whether this machine or job is ready for a run"),
    "job": ("fedkd_mpi.job", "write a Slurm script for a configuration"),
    "info": ("fedkd_mpi.info", "print versions, hardware and data, or what a log says of its run"),
}


def usage() -> str:
    """Return the list of the commands, one line each."""
    lines = [f"  {name:8}{text}" for name, (_, text) in COMMANDS.items()]
    head = "usage: fedkd COMMAND [ARGUMENT ...]        fedkd COMMAND --help shows its arguments, --version the version"
    return "\n".join([head, "", *lines])


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; 2 if there is no such command.

    With argv the process is the caller's: its signal handlers stay, and portable_bits does not replace it.
    """
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in COMMANDS:
        if name == "run" and argv is None:
            from fedkd_mpi.fault_tolerance import early_signals

            early_signals.listen()  # before slow imports
        code: int = importlib.import_module(COMMANDS[name][0]).main(rest)
        return code
    from fedkd_mpi.common.command_line import VERSION
    from fedkd_mpi.common.registry import nearest
    from fedkd_mpi.communication.launch import leave
    from fedkd_mpi.errors import shown

    if name in ("--version", "-V"):
        leave(0, VERSION, {"mode": "fedkd --version"})
    if name in ("--help", "-h", "help"):
        leave(0, usage(), {"mode": "fedkd --help"})
    near = nearest(name, list(COMMANDS))
    hint = f"did you mean {near}?" if near else f"the commands are {', '.join(COMMANDS)}"
    leave(2, f"fedkd: unknown command {shown(name)}; {hint}")


if __name__ == "__main__":
    sys.exit(main())
