"""Files of data sets with bytes changed, cut out or put in are read or refused in one line, whatever the bytes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import own_files
import pytest
from hypothesis import given
from hypothesis import strategies as st
from phantoms import write_patients
from text_data import write_ade, write_cadec, write_mind, write_smm4h

from fedkd_mpi.datasets import ade, cadec, check, load, mayo_ct, mind, smm4h
from fedkd_mpi.datasets.partition_file import Samples, read, write
from fedkd_mpi.errors import UserError


def write_flat(root: Path) -> None:
    """Small MNIST and CIFAR-10."""
    draw = np.random.default_rng(0)
    for folder in ("mnist", "cifar-10-batches-bin"):
        (root / folder).mkdir(parents=True)
    for part in ("train", "t10k"):
        pixels, labels = draw.integers(0, 256, (12, 4, 4), np.uint8), np.arange(12, dtype=np.uint8) % 10
        for kind, array in (("images-idx3", pixels), ("labels-idx1", labels)):
            head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
            (root / f"mnist/{part}-{kind}-ubyte").write_bytes(head + array.tobytes())
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        records = np.zeros((2, 3073), np.uint8)
        (root / f"cifar-10-batches-bin/{name}.bin").write_bytes(records.tobytes())


def write_ct(root: Path) -> None:
    write_patients(root, {"L001": 2})


def impressions(root: Path) -> None:
    rows = {name: row for row, name in enumerate(mind._titles(root / "MINDsmall_train/news.tsv"), 1)}
    list(mind._impressions(root / "MINDsmall_train/behaviors.tsv", rows))


READERS: dict[str, tuple[Callable[[Path], object], Callable[[Path], object]]] = {
    "ade": (write_ade, ade.tagged),
    "cadec": (write_cadec, cadec.tagged),
    "smm4h": (write_smm4h, smm4h.tagged),
    "mind": (write_mind, impressions),
    "mnist": (write_flat, lambda root: load("mnist", root, 0)),
    "cifar": (write_flat, lambda root: load("cifar10", root, 0)),
    "ct": (write_ct, lambda root: mayo_ct.read_series(root / "mayo-2016/full_3mm/L001")),
}
OWN = {
    "csv": (
        lambda root: own_files.table(root / "t.csv"),
        {"path": "t.csv", "label": "kind", "features": ["a"], "client": "site", "categorical": ["colour"]},
    ),
    "npz": (lambda root: own_files.arrays(root / "a.npz"), {"path": "a.npz"}),
}
for _name, (_write, _keys) in OWN.items():
    READERS[_name] = (
        _write,
        lambda root, name=_name, keys=_keys: load(
            name, None, 0, check(name, {**keys, "path": str(root / keys["path"])})
        ),
    )
PARTS = Samples(np.arange(9) % 2)
for _name in ("p.json", "p.npz"):
    READERS[_name] = (
        lambda root, name=_name: write(
            root / name, [(np.arange(3), np.arange(3, 5)), (np.arange(5, 9), np.arange(0))], PARTS, overwrite=False
        ),
        lambda root, name=_name: read(str(root / name), 2, PARTS),
    )
CHANGES = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 4), st.binary(min_size=0, max_size=6)),
    min_size=1,
    max_size=4,
)


def refusal(read: Callable[[], object]) -> str | None:
    try:
        read()
    except UserError as error:
        return str(error)
    return None


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a reader's files, written once."""

    @cache
    def folder(name: str) -> Path:
        root = tmp_path_factory.mktemp(name)
        READERS[name][0](root)
        return root

    return folder


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", READERS)
@given(which=st.integers(0, 1000), changes=CHANGES, ahead=st.booleans())
def test_a_damaged_file_is_read_or_refused_in_one_line(
    written: Callable[[str], Path], name: str, which: int, changes: list[tuple[float, int, bytes]], ahead: bool
):
    if name == "ct":
        pytest.importorskip("pydicom", reason="pydicom is not installed (extra ct)")
    root = written(name)
    files = sorted(path for path in root.rglob("*") if path.is_file())
    path = files[which % len(files)]
    whole = path.read_bytes()
    content = bytearray(whole)
    for at, length, new in changes:
        place = int(at * (min(len(content), 1200) if ahead else len(content)))
        content[place : place + length] = new
    path.write_bytes(content)
    message = refusal(lambda: READERS[name][1](root))
    path.write_bytes(whole)
    assert message is None or (message.isprintable() and str(root) in message and len(message) < 2000)
