"""Runs a command where modules are missing: worker_without.py MODULE,MODULE COMMAND [ARGUMENT ...]."""

from __future__ import annotations

import importlib
import sys

missing, command, *arguments = sys.argv[1:]
for name in missing.split(","):
    sys.modules[name] = None  # importing it raises
sys.exit(importlib.import_module(f"fedkd_mpi.{command}").main(arguments))
