"""python -m fedkd_mpi.export: trained networks out of a log's checkpoints, by the names that PyTorch has for them.

python -m fedkd_mpi.export runs/a.h5 --to student.safetensors                    the global student after the last round
python -m fedkd_mpi.export runs/a.h5 --round best --to student.onnx              that of the best round, as ONNX
python -m fedkd_mpi.export runs/a.h5 --client 3 --to teacher                     an encoder of texts, as a folder
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from fedkd_mpi.common.command_line import Parser, count
from fedkd_mpi.common.console import open_standard_streams, say
from fedkd_mpi.common.units import bytes_text
from fedkd_mpi.errors import UserError

MOST = 10**9


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0, or 2 where the network is not there or cannot be written so."""
    open_standard_streams()
    parser = Parser("export", "Write a trained network to a file.")
    parser.add_argument("log", type=Path, metavar="LOG", help="the log of a run, its checkpoints beside it")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--student", action="store_true", help="the global student (the default)")
    which.add_argument("--client", type=count(0, MOST), metavar="N", help="the teacher of client N")
    parser.add_argument(
        "--round", type=_round, default="last", metavar="best|last|K", help="after which round (default last; K rounds)"
    )
    parser.add_argument(
        "--to", type=Path, required=True, metavar="FILE", help="x.safetensors, x.onnx, or a Hugging Face folder"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    parser.add_argument(
        "--trust-log", action="store_true", help="run the code that the log names (package.module:Name)"
    )
    chosen = parser.parse_args(argv)
    try:
        from fedkd_mpi.simulation import card, export_files, trained

        source = trained.find(chosen.log, chosen.round, trust_log=chosen.trust_log)
        module = trained.student(source) if chosen.client is None else trained.teacher(source, chosen.client)
        made = card.card(source, chosen.client)
        files = export_files.write(module, source, made, chosen.to, overwrite=chosen.overwrite)
    except UserError as error:
        say(f"fedkd_mpi: {error}", error=True)
        return 2
    say(f"{made['role']}, {made['network']['name']}, after round {made['round']}")
    for name, value in made["scores"].items():
        say(f"  {name}: {value:.4f}")
    for file in files:
        say(f"  {file}  {bytes_text(file.stat().st_size)}")
    return 0


def _round(text: str) -> int | str:
    return text if text in ("best", "last") else count(1, MOST)(text)


if __name__ == "__main__":
    sys.exit(main())
