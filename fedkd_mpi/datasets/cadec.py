"""CADEC: patients' posts on drugs, annotated in brat's standoff format.

text/NAME.txt contains a post, original/NAME.ann one entity per line: T1, tab, "ADR 9 19" or with several fragments
"ADR 9 19;25 30", tab, the words. Source: Karimi et al. 2015, doi 10.1016/j.jbi.2015.03.010.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from fedkd_mpi.common.console import say
from fedkd_mpi.datasets import data_folder, is_stray
from fedkd_mpi.datasets.corpora import Span, Tagged
from fedkd_mpi.datasets.tokens import read_lines, read_text
from fedkd_mpi.errors import UserError

KINDS = {"ADR": "effect", "Drug": "drug", "Disease": "disease", "Symptom": "symptom", "Finding": "finding"}
# Lines of the published corpus whose words are not at their offsets; other such lines are refused.
KNOWN_FAULTS = {("DICLOFENAC-SODIUM.7", 7), ("DICLOFENAC-SODIUM.7", 8), ("LIPITOR.944", 4), ("VOLTAREN.34", 5)}
EMPTY_POSTS = ("LIPITOR.40", "VOLTAREN-XR.9")
SENTENCE_END = re.compile(r"[\r\n]+|(?<=[.!?])\s+")


def tagged(root: Path | None) -> Tagged:
    """Return the sentences of the posts with their entities; an adverse reaction is an "effect". Raises UserError.

    A discontinuous entity is one span from its first to its last character. No sentence ends within an entity.
    """
    folder = data_folder(root, "cadec")
    names = sorted(path.stem for path in (folder / "text").glob("*.txt") if not is_stray(path))
    if not names:
        raise UserError(f"{folder}: has no text/*.txt; unpack the corpus there")
    texts, spans, document = [], [], []
    skipped: list[str] = []
    for index, name in enumerate(names):
        if name in EMPTY_POSTS and not (folder / "text" / f"{name}.txt").stat().st_size:
            skipped.append(f"{name} (empty)")
            continue
        text = read_text(folder / "text" / f"{name}.txt")
        found = _annotations(folder / "original" / f"{name}.ann", text, skipped)
        for start, end in _sentences(text, found):
            texts.append(text[start:end])
            inside = [span for span in found if start <= span.start and span.end <= end]
            spans.append([Span(span.start - start, span.end - start, span.kind) for span in inside])
            document.append(index)
    if skipped:
        say(f"fedkd_mpi: {folder}: {len(skipped)} known faults skipped: {', '.join(skipped)}", error=True)
    return Tagged(texts, spans, np.array(document, np.int64))


def _annotations(path: Path, text: str, skipped: list[str]) -> list[Span]:
    if path.exists() and not path.stat().st_size:
        return []  # a post without entities
    found = []
    for number, line in read_lines(path):
        where = f"{path}, line {number}"
        if not line.strip() or not line.startswith("T"):
            continue  # notes and relations
        match = re.fullmatch(r"T\d+\t(\S+) (\d+ \d+(?:;\d+ \d+)*)\t(.+)", line, re.ASCII)
        if match is None:
            raise UserError(f"{where}: not of the form 'T1, tab, TYPE start end, tab, words': {line[:60]!r}")
        if match[1] not in KINDS:
            raise UserError(f"{where}: unknown type {match[1]!r}; known are {', '.join(KINDS)}")
        fragments = [tuple(map(int, part.split())) for part in match[2].split(";")]
        there = " ".join(text[start:end] for start, end in fragments)
        if "".join(there.split()) != "".join(match[3].split()):
            if (path.stem, number) in KNOWN_FAULTS:
                skipped.append(f"{path.stem} line {number}")
                continue
            raise UserError(f"{where}: {match[3]!r} does not match the offsets: there is {there!r}")
        found.append(Span(min(fragments)[0], max(end for _, end in fragments), KINDS[match[1]]))
    return found


def _sentences(text: str, spans: list[Span]) -> list[tuple[int, int]]:
    """Return (start, end) of the sentences; ends within a span do not count."""
    ends = [
        match.span()
        for match in SENTENCE_END.finditer(text)
        if not any(span.start < match.end() and match.start() < span.end for span in spans)
    ]
    starts = [0, *(end for _, end in ends)]
    stops = [*(start for start, _ in ends), len(text)]
    return [(start, stop) for start, stop in zip(starts, stops, strict=True) if text[start:stop].strip()]
