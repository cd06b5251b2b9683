"""Writes the golden log of the present schema version anew, and what it holds as JSON.

    python tests/helpers/golden_logs.py

Only where the schema has a new version; CHANGELOG.md then says so. The logs of earlier versions stay as they are.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import logs
import numpy as np

from fedkd_mpi import costlog
from fedkd_mpi.costlog.schema import SCHEMA_VERSION

GOLDEN = Path(__file__).parents[1] / "golden"
ROUNDS = 3


def unpack(version: int, folder: Path) -> Path:
    """Return the golden log of a schema version, unpacked in a folder: most of its bytes are room."""
    log = folder / f"log-{version}.h5"
    log.write_bytes(gzip.decompress((GOLDEN / f"{log.name}.gz").read_bytes()))
    return log


def expected(version: int) -> dict[str, Any]:
    """Return what the golden log of a schema version holds, as plain() gives it."""
    return json.loads((GOLDEN / f"log-{version}.json").read_text(encoding="utf-8"))


def plain(tables: dict[str, Any]) -> dict[str, Any]:
    """Return what costlog.read() gave, as JSON can hold it: attributes as they are, columns as type and values."""

    def column(values: np.ndarray) -> list[Any]:
        return ["text" if values.dtype.kind in "OSU" else values.dtype.name, list(values.shape), values.tolist()]

    return {
        table: columns if table == "attrs" else {name: column(np.asarray(values)) for name, values in columns.items()}
        for table, columns in tables.items()
    }


def write(folder: Path) -> None:
    """Write the log of the present version, and beside it what is read from it."""
    log = folder / f"log-{SCHEMA_VERSION}.h5"
    writer = logs.create(log, encrypted=True, differential=True)
    for number in range(ROUNDS):
        writer.event(number, 2, "warning", f"event of round {number}")
        writer.append_round(*logs.make_round(number, encrypted=True, differential=True))
    writer.finish("completed")
    (GOLDEN / f"{log.name}.gz").write_bytes(gzip.compress(log.read_bytes(), mtime=0))
    text = json.dumps(plain(costlog.read(log)), ensure_ascii=False)
    (GOLDEN / f"{log.stem}.json").write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    with TemporaryDirectory() as name:
        write(Path(name))
