"""What a person sees of a sweep: a live line on a terminal that says what runs, for how long, and what is left."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import yaml
from command import TINY
from plain_digits import PLAIN_DIGITS
from terminals import OnTerminal

from fedkd_mpi.simulation.course import Course


def test_the_line_fits_every_width_and_counts_what_it_leaves_out() -> None:
    course = Course(12, 4)
    for name in ("svd-s0", "rdsvd-s0", "quantize-s0", "none-s0"):
        course.begins(Path("runs", f"{name}.h5"), 40, "to do")
    course.ends(Path("runs/none-s0.h5"), 30.0)
    narrower = 0
    for width in range(60, 200):
        texts = [text for text, _ in course.line(width)]
        assert len("  ".join(texts)) <= width
        assert (texts[0], texts[-1][-5:]) == ("1 of 12 runs done", " left")
        named = [text for text in texts if "round 1/40" in text]
        assert len(named) >= narrower
        if len(named) < 3:
            assert texts[-2] == (f"{3 - len(named)} more" if named else "3 running")
        narrower = len(named)
    assert narrower == 3


def test_a_sweep_on_a_terminal_shows_its_rounds_and_then_the_table(tmp_path: Path) -> None:
    words = [*TINY, PLAIN_DIGITS, "rounds=100000", "evaluate.every=100000"]
    keys = {key: yaml.safe_load(value) for key, value in (word.split("=", 1) for word in words)}
    sweep = {"config": "digits", "output": "runs", "set": keys, "runs": {"long": {}, "short": {"rounds": 1}}}
    (tmp_path / "mine.yaml").write_text(json.dumps(sweep))
    command = [sys.executable, "-m", "fedkd_mpi.sweep", "mine.yaml", "--jobs", "2"]
    with OnTerminal(100, command, tmp_path) as screen:
        screen.until(r"runs/short-s0.h5: done in .*; 1 of 2 runs")
        screen.until(r"1 of 2 runs done  long-s0 round (?!1/)\d+/100000, \d+\.\d (s|min)  about .* left")
        (tmp_path / "runs" / "STOP").touch()
        assert screen.wait() == 75
    assert re.search(r"long-s0.h5: exit code 75 after", screen.text)
