"""Command-line parsing that reports an error in one line, with exit code 2."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

from fedkd_mpi.common.console import say, tell
from fedkd_mpi.errors import shown


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line without the usage text."""

    def error(self, message: str) -> NoReturn:
        say(f"{self.prog}: {shown(message, 300)}; --help shows the usage", error=True)
        sys.exit(2)

    def print_help(self, file: object = None) -> None:
        tell(self.format_help().rstrip())


def count(least: int, most: int) -> Callable[[str], int]:
    """Return an argparse type for whole numbers from `least` to `most`, in plain decimal digits."""

    def whole_number(text: str) -> int:
        if not (text.isascii() and text.isdecimal() and len(text) < 20 and least <= int(text) <= most):
            raise argparse.ArgumentTypeError(f"{shown(text)} is not a whole number from {least} to {most}")
        return int(text)

    return whole_number
