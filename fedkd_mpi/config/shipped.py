"""The shipped configurations: where they are, and how a name finds one."""

from __future__ import annotations

import os
from pathlib import Path


def presets() -> Path:
    """Return the folder of the shipped configurations, inside the installed package or beside it in a checkout."""
    inside = Path(__file__).parents[1] / "configs"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "configs"


def shipped(path: Path) -> Path:
    """Return `path` if it exists, else the path of the shipped configuration of this name, with or without .yaml."""
    if path.is_absolute() or os.path.lexists(path) or not path.name.strip("."):
        return path
    inside = presets() / path.with_suffix(".yaml")
    return inside if os.path.lexists(inside) else path
