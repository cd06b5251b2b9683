"""An encrypted run under mpirun that writes, on every rank, digest of the key and nonce of each message it seals."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

from worker_simulation import QUICK, SMALL


def main(folder: Path) -> int:
    """Run six clients for two rounds; return the exit code."""
    from fedkd_mpi import run
    from fedkd_mpi.communication.launch import launched
    from fedkd_mpi.privacy import aes_gcm

    seal, used = aes_gcm.seal, []

    def watched(key: bytes, number: bytes, *rest: Any) -> None:
        used.append(f"{hashlib.sha256(key).hexdigest()} {number.hex()}\n")
        seal(key, number, *rest)

    aes_gcm.seal = watched
    settings = [*QUICK, *SMALL, "num_clients=6", "privacy.encryption=aes-gcm"]
    code = run.main(["--output", str(folder / "x.h5"), *settings])
    (folder / f"{launched()[0]}.txt").write_text("".join(used), encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
