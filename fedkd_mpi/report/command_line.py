"""The command line of the report: its options, and what they may be."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from fedkd_mpi.common.command_line import Parser
from fedkd_mpi.errors import UserError, shown
from fedkd_mpi.privacy import protocols
from fedkd_mpi.report import links, sheets
from fedkd_mpi.report.canvas import KINDS
from fedkd_mpi.report.runs import SCORES


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = Parser("report", "Tables, plots and replays from the HDF5 logs of runs.")
    parser.add_argument(
        "logs",
        nargs="+",
        type=Path,
        metavar="LOG",
        help="HDF5 log of a finished, running or killed run; a folder means all *.h5 in it",
    )
    parser.add_argument(
        "--format",
        choices=[*sheets.RENDERERS, "csv", "json"],
        default="table",
        help="markdown: exact numbers; latex: one table of at most 7 columns; csv and json: exact, one row per log",
    )
    parser.add_argument(
        "--columns",
        type=_text,
        metavar="KEY,KEY,...",
        help="one table of these columns in this order: run, settings such as codec, columns of csv",
    )
    parser.add_argument(
        "--baseline",
        type=_text,
        metavar="RUN",
        help="differences to this run, paired by seed, with 95 %% intervals: an id of the tables or a name",
    )
    parser.add_argument(
        "--published",
        type=_path,
        metavar="SWEEP.yaml",
        help="print what is published beside the runs: a sweep, or a shipped one such as"
        " published/cifar10_dirichlet_htfe8",
    )
    parser.add_argument("--json", action="store_const", const="json", dest="format", help="the same as --format json")
    parser.add_argument(
        "--target",
        type=_finite,
        metavar="VALUE",
        help="count bytes, rounds and time until the score reaches this value",
    )
    parser.add_argument(
        "--score", choices=SCORES, default="global_student", help="score for --target (default global_student)"
    )
    parser.add_argument("--metric", type=_text, help="metric of all scores (default the first in each log)")
    parser.add_argument(
        "--network",
        type=_text,
        action="append",
        default=[],
        metavar="PROFILE",
        help=f"replay over {', '.join(links.PRESETS)} or a YAML file; may be repeated",
    )
    parser.add_argument(
        "--energy",
        type=_text,
        nargs="?",
        const="0.9,0.95,0.98,0.99,0.999",
        metavar="T,T,...",
        help="bytes of codec svd at other thresholds (for logs with spectra)",
    )
    parser.add_argument(
        "--messages",
        action="store_true",
        help="messages by size with effective bandwidth and waiting, and stragglers by MPI rank and client",
    )
    parser.add_argument(
        "--privacy",
        action="store_true",
        help="what secure aggregation and homomorphic encryption would add, or why they cannot",
    )
    parser.add_argument(
        "--protocol",
        type=_text,
        metavar="NAME=N,...",
        help=f"parameters of --privacy: {', '.join(protocols.LIMITS)}, coefficient_bits=60+40+40",
    )
    parser.add_argument("--clients", action="store_true", help="best and last round of every client's own networks")
    parser.add_argument("--plot", type=_path, metavar="DIR", help="write the plots to this folder")
    parser.add_argument(
        "--formats",
        type=_text,
        metavar="KIND,KIND,...",
        help="formats of the plots, of png, svg and pdf (default: all for those of all runs together; png,pdf for those"
        " of one run)",
    )
    parser.add_argument(
        "--tensorboard",
        type=_path,
        metavar="DIR",
        help="write scores, bytes, ranks and seconds as events for TensorBoard",
    )
    parser.add_argument("--html", type=_path, metavar="FILE", help="write one self-contained interactive page")
    parser.add_argument(
        "--diff",
        action="store_true",
        help="compare two logs: configuration, provenance, data, layers, and the first round, client and layer where"
        " their bits part",
    )
    parser.add_argument("--follow", action="store_true", help="show a running log round by round until it ends")
    return parser.parse_args(argv)


def kinds(chosen: argparse.Namespace) -> list[str]:
    """Return the kinds of files of --formats, [] for the default; raises UserError."""
    names = [kind.lower() for kind in listed("--formats", chosen.formats)]
    if names and not chosen.plot:
        raise UserError("--formats chooses the files of --plot DIR: give it too")
    for kind in names:
        if kind not in KINDS:
            raise UserError(f"--formats {shown(kind)} is unknown: give some of {','.join(KINDS)}")
    return list(dict.fromkeys(names))


def listed(option: str, text: str | None) -> list[str]:
    """Return the names of an option that are separated by commas; raises UserError."""
    names = [part.strip() for part in text.split(",")] if text else []
    if not all(names):
        raise UserError(f"{option} {shown(text)}: a name is missing before or after a comma")
    return names


def _text(text: str) -> str:
    """Return a text; an empty one comes from a variable of the shell that is not set."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty")
    return text


def _path(text: str) -> Path:
    return Path(_text(text))


def _finite(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text} is no finite number")
    return value
