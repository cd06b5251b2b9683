"""Runs `python -m benchmarks` several times in one process: python worker_benchmarks.py FOLDER {NAME: [ARGUMENT, ...]}

Writes FOLDER/NAME.json, what a benchmark found, and FOLDER/NAME.txt: what it printed, its error included.
"""

from __future__ import annotations

import json
import runpy
import sys
import traceback
from contextlib import redirect_stdout
from pathlib import Path

folder = Path(sys.argv[1])
for name, arguments in json.loads(sys.argv[2]).items():
    sys.argv = ["benchmarks", name, "--json", str(folder / f"{name}.json"), *arguments]
    with (folder / f"{name}.txt").open("w", encoding="utf-8") as printed, redirect_stdout(printed):
        try:
            runpy.run_module("benchmarks", run_name="__main__")
        except (Exception, SystemExit):  # the others run all the same
            traceback.print_exc(file=printed)
