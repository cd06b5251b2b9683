"""Which data files a reader opens, whoever wrote it, and their digests for the log."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fedkd_mpi.datasets import BLOCK

MOST = 100  # files with a row of their own each; more share that of their folder
CODE = (".py", ".pyc", ".pyi", ".pth", ".so")  # opened by imports
PACKAGES = ("/site-packages/", "/dist-packages/")
SYSTEM = ("/proc/", "/sys/", "/dev/", "/etc/", "/usr/lib/", "/usr/share/")
_lists: list[list[str]] = []  # of the recordings that go on
_hooked = False


@contextmanager
def recorded() -> Iterator[list[Path]]:
    """Record the files that this process opens for reading inside the block; the list is filled at its end.

    Files of Python and its packages, and of the system, are left out, as are those that no longer exist.
    """
    global _hooked
    if not _hooked:  # a hook cannot be removed
        sys.addaudithook(_note)
        _hooked = True
    names: list[str] = []
    found: list[Path] = []
    _lists.append(names)
    try:
        yield found
    finally:
        _lists.remove(names)
    found += sorted({Path(os.path.abspath(name)) for name in names if _is_data(os.path.abspath(name))})  # noqa: PTH100


def below(folder: Path) -> list[Path]:
    """Return all files below a folder, sorted."""
    return sorted(Path(os.path.abspath(path)) for path in folder.rglob("*") if path.is_file())  # noqa: PTH100


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if _lists and event == "open":
        path, mode, flags = arguments
        reads = not set(mode) & set("wax+") if isinstance(mode, str) else flags & os.O_ACCMODE == os.O_RDONLY
        if reads and isinstance(path, str | bytes):
            for names in _lists:
                names.append(os.fsdecode(path))


def _is_data(path: str) -> bool:
    ours = (*SYSTEM, f"{sys.prefix}/", f"{sys.base_prefix}/")
    if path.endswith(CODE) or path.startswith(ours) or any(part in path for part in PACKAGES):
        return False
    return Path(path).is_file()


def described(files: Sequence[Path]) -> dict[str, np.ndarray]:
    """Return the columns of the log's table files: a row for each file, or one for the folder of more than MOST.

    The digest is the SHA-256 of the content. That of a folder is the SHA-256 of what sha256sum prints for its files
    in the order of their names, relative to the folder.
    """
    digests = [_digest(file) for file in files]
    sizes = [file.stat().st_size for file in files]
    rows = [(str(file), 1, size, digest) for file, size, digest in zip(files, sizes, digests, strict=True)]
    if len(files) > MOST:
        top = Path(os.path.commonpath(files))
        names = [file.relative_to(top).as_posix() for file in files]
        lines = sorted(zip(names, digests, strict=True))
        text = "".join(f"{digest}  {name}\n" for name, digest in lines)
        rows = [(f"{top}/", len(files), sum(sizes), hashlib.sha256(text.encode()).hexdigest())]
    paths, counts, lengths, found = zip(*rows, strict=True) if rows else ((), (), (), ())
    return {
        "path": np.array(paths, dtype=str),
        "count": np.array(counts, dtype=np.int64),
        "bytes": np.array(lengths, dtype=np.int64),
        "digest": np.array(found, dtype=str),
    }


def _digest(path: Path) -> str:
    whole = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            whole.update(block)
    return whole.hexdigest()
