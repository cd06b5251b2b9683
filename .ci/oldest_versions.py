"""Prints the oldest version of every package that setup.py admits, one pin per line, as pip reads them."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any
from unittest.mock import patch


def declared() -> dict[str, Any]:
    """Return what setup.py gives to setuptools."""
    with patch("setuptools.setup") as setup:
        runpy.run_path(str(Path(__file__).parent.parent / "setup.py"))
    return dict(setup.call_args.kwargs)


def pins() -> list[str]:
    """Return name==version for what the package needs and for the extra `all`; raises ValueError for another bound."""
    found = declared()
    bounds = [*found["install_requires"], *found["extras_require"]["all"]]
    for bound in bounds:
        if bound.count(">=") != 1 or any(mark in bound for mark in ",<!~;"):
            raise ValueError(f"setup.py: {bound} is not name>=version, so it has no oldest version")
    return sorted(bound.replace(">=", "==") for bound in bounds)


if __name__ == "__main__":
    print("\n".join(pins()))
