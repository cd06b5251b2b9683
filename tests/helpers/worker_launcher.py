"""A launcher that misbehaves: worker_launcher.py WAY LOG COMMAND...

lost: kills the command when the log has a round more, and returns 0, as Open MPI's mpirun does that loses a daemon. It
does so twice, then it is a good launcher.
stays: runs the command to its end and then waits for ever, as mpirun does for the daemon of a dead node.
"""

from __future__ import annotations

import faulthandler
import subprocess
import sys
import time
from pathlib import Path

from sessions import rounds_in

faulthandler.dump_traceback_later(300, exit=True)
way, log, command = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
count = Path(f"{log}.launches")
launches = int(count.read_text()) if count.exists() else 0
count.write_text(str(launches + 1))
before = rounds_in(log)
with subprocess.Popen(command) as process:
    if way == "lost" and launches < 2:
        while rounds_in(log) < before + 2 and process.poll() is None:
            time.sleep(0.02)
        process.kill()
        process.wait()
        sys.exit(0)
    code = process.wait()
if way == "stays":
    time.sleep(600)
sys.exit(code)
