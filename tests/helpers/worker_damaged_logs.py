"""Reads copies of logs in which bits are flipped, bytes are noise or the end is missing: `FOLDER FIRST COUNT`.

Prints a line for each copy before it is read and how that ended, so that a crash or a hang has a number.
"""

from __future__ import annotations

import resource
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np

NUMBERS = (2**64 - 1, 2**63, 2**31, 10**9, 1, 0)
MEMORY = 2**31  # bytes of address space beyond what the libraries take


def mutate(image: bytes, number: int) -> bytes:
    """Return a damaged copy of a file: always the same for the same number."""
    rng = np.random.default_rng(number)
    data = np.frombuffer(image, np.uint8).copy()
    kind = rng.integers(8)
    used = np.flatnonzero(data)  # most of a log is room for more
    if kind < 5:
        for _ in range(1 if kind < 4 else rng.integers(2, 20)):
            data[rng.choice(used)] ^= 1 << rng.integers(8)
    elif kind == 5:
        start, length = rng.choice(used), int(2 ** rng.integers(13))
        data[start : start + length] = rng.integers(0, 256, len(data[start : start + length]))
    elif kind == 6:
        data = data[: rng.integers(len(data))]
    else:  # a number of a structure becomes another one
        at = min(rng.choice(used), len(data) - 8)
        data[at : at + 8] = np.frombuffer(NUMBERS[rng.integers(len(NUMBERS))].to_bytes(8, "little"), np.uint8)
    return data.tobytes()


def main(folder: Path, first: int, count: int) -> None:
    """Read and report copies."""
    from fedkd_mpi import costlog
    from fedkd_mpi.errors import UserError
    from fedkd_mpi.report import __main__ as report

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    warnings.simplefilter("error")
    logs = sorted(folder.glob("*.h5"))
    images = [path.read_bytes() for path in logs]
    copy = folder / "copy" / "x.h5"
    copy.parent.mkdir(exist_ok=True)
    for number in range(first, first + count):
        copy.write_bytes(mutate(images[number % len(images)], number))
        print(number, logs[number % len(logs)].name, end=" ", flush=True)
        try:
            costlog.read(copy)
            out, err = StringIO(), StringIO()
            with redirect_stdout(out), redirect_stderr(err):
                code = report.main([str(copy), "--network", "home", "--energy"])
            print("read", code, flush=True)
        except UserError as error:
            print("refused" if str(copy) in str(error) and "\n" not in str(error) else f"WRONG {error!r}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
