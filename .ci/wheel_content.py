"""Checks that a wheel holds the package, its configurations and py.typed, all of them and nothing else."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path


def main(wheel: str) -> int:
    root = Path(__file__).parent.parent
    wanted = {str(path.relative_to(root)) for path in (root / "fedkd_mpi").rglob("*.py")} | {"fedkd_mpi/py.typed"}
    wanted |= {
        str(path.relative_to(root))
        for kind in ("html", "css", "js")
        for path in (root / "fedkd_mpi").rglob(f"*.{kind}")
    }
    wanted |= {f"fedkd_mpi/{path.relative_to(root)}" for path in (root / "configs").rglob("*.yaml")}
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    wrong = [f"lacks {name}" for name in sorted(wanted - found)] + [f"holds {name}" for name in sorted(found - wanted)]
    for line in wrong:
        print(f"{Path(wheel).name} {line}", file=sys.stderr)
    return min(len(wrong), 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
