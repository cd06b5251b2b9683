"""The keys of single data sets under `data`, next to name, root and augment."""

from __future__ import annotations

from fedkd_mpi.options import Options

OPTIONS: dict[str, type[Options]] = {}
