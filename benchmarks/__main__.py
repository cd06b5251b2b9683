"""python -m benchmarks NAME [--json FILE]: print a benchmark's table; write claims, rows and machine as JSON."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

NAMES = sorted(
    file.stem for file in Path(__file__).parent.glob("[a-z]*.py") if "\ndef run(" in file.read_text(encoding="utf-8")
)


def machine() -> dict[str, Any]:
    """Return the properties of the machine that are needed to interpret the results."""
    import numpy
    import torch

    processor = next(
        (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if "model name" in line), "unknown"
    )
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": numpy.__version__}
    return {"processor": processor, "cores": len(os.sched_getaffinity(0)), "gpu": gpu, **versions}


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines() if Path(path).exists() else []


def main() -> None:
    """Run one benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--json", type=Path, metavar="FILE")
    chosen, own = parser.parse_known_args()
    claims, rows = importlib.import_module(f"benchmarks.{chosen.name}").run(own)
    console = Console(width=140)
    if rows:
        table = Table(*rows[0], title=chosen.name, title_justify="left")
        for row in rows:
            table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
        console.print(table)
    for name, value in claims.items():
        console.print(f"{name} = {value:.4g}")
    if chosen.json:
        found = {"benchmark": chosen.name, "machine": machine(), "claims": claims, "rows": rows}
        chosen.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
