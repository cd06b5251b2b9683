"""Writes a log of four rounds, 0.2 seconds apart: worker_growing_log.py LOG."""

from __future__ import annotations

import sys
import time

import logs

writer = logs.create(sys.argv[1])
for number in range(4):
    time.sleep(0.2)
    writer.append_round(*logs.make_round(number))
writer.finish("completed")
