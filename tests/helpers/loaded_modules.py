"""Which modules a fresh Python has loaded after some statements."""

from __future__ import annotations

import sys

from mpirun import run


def loaded_after(statements: str) -> set[str]:
    """Return the full names of the modules."""
    done = run([sys.executable, "-c", f"{statements}\nimport sys\nprint(*sys.modules)"])
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())
