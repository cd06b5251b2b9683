"""docs/notebook.ipynb, executed from its first cell to its last in an empty folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from mpirun import PATIENCE, REPOSITORY

NOTEBOOK = REPOSITORY / "docs" / "notebook.ipynb"
pytestmark = pytest.mark.slow


def outputs(notebook: Any) -> list[set[str]]:
    """Return the kinds of output of each cell of code."""
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return [{kind for output in cell["outputs"] for kind in output.get("data", output)} for cell in cells]


def test_every_cell_runs_and_shows_what_the_page_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    for package in ("ipykernel", "pandas", "matplotlib", "xarray", "h5netcdf"):
        pytest.importorskip(package)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH")))))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    shown = outputs(notebook)
    where = {"metadata": {"path": str(tmp_path)}}
    client.NotebookClient(notebook, timeout=2 * PATIENCE, kernel_name="python3", resources=where).execute()
    assert outputs(notebook) == shown
    assert {path.name for path in tmp_path.glob("*.h5")} == {"digits-svd.h5", "digits-none.h5"}


def test_what_is_committed_was_executed_in_order_and_names_no_machine() -> None:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert all(cell["outputs"] for cell in cells[1:])
    assert str(Path.home()) + "/" not in NOTEBOOK.read_text(encoding="utf-8")
