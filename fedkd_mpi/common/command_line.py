"""What the command lines of all commands have in common: names, --help, --version, errors in one line, JSON."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from fedkd_mpi import __version__
from fedkd_mpi.common.console import say, tell
from fedkd_mpi.errors import LONGEST_LINE, shown

VERSION = f"fedkd_mpi {__version__}"


def name_of(command: str) -> str:
    """Return how the user starts a command: `fedkd run` if this process was started so, or python -m fedkd_mpi.run."""
    return f"fedkd {command}" if Path(sys.argv[0]).name == "fedkd" else f"python -m fedkd_mpi.{command}"


class Parser(argparse.ArgumentParser):
    """The parser of the command `command`, with --version; its errors are one line without the usage text."""

    def __init__(self, command: str, description: str):
        super().__init__(prog=name_of(command), description=description)
        self.add_argument("--version", action=_Version, help="print the version and stop")

    def error(self, message: str) -> NoReturn:
        say(f"{self.prog}: {shown(message, LONGEST_LINE)}; --help shows the usage", error=True)
        sys.exit(2)

    def answer(self, text: str, option: str) -> None:
        """Print the answer to `option`, --help or --version."""
        tell(text)

    def print_help(self, file: object = None) -> None:
        self.answer(self.format_help().rstrip(), "--help")


class _Version(argparse.Action):
    def __init__(self, option_strings: list[str], dest: str, help: str):
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        if isinstance(parser, Parser):
            parser.answer(VERSION, "--version")
        parser.exit()


def add_json(parser: argparse.ArgumentParser, help: str = "print JSON, for programs") -> None:
    """Add the option --json."""
    parser.add_argument("--json", action="store_true", help=help)


def json_text(value: Any) -> str:
    """Return a value as JSON, indented for readers; NaN and infinity, which JSON lacks, become null."""
    return json.dumps(_finite(value), indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def count(least: int, most: int) -> Callable[[str], int]:
    """Return an argparse type for whole numbers from `least` to `most`, in plain decimal digits."""

    def whole_number(text: str) -> int:
        if not (text.isascii() and text.isdecimal() and len(text) < 20 and least <= int(text) <= most):
            raise argparse.ArgumentTypeError(f"{shown(text)} is not a whole number from {least} to {most}")
        return int(text)

    return whole_number
