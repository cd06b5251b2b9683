"""SMM4H: tweets that report an adverse drug reaction, as tab-separated tables with a header (docs/tasks.md).

The data are provided to participants of the shared tasks: https://healthlanguageprocessing.org.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from fedkd_mpi.common.console import say
from fedkd_mpi.datasets import Dataset, data_folder
from fedkd_mpi.datasets.corpora import Span, Tagged
from fedkd_mpi.datasets.tokens import Tokens, blank_texts, read_lines
from fedkd_mpi.errors import UserError

QUOTED = re.compile(r'"(?:[^"]|"")*"')
TRAIN, TEST, SPANS = "train.tsv", "test.tsv", "spans.tsv"
CLASSES = ["no adverse effect", "adverse effect"]
LABELS = {"0": 0, "1": 1, "noade": 0, "ade": 1}
Columns = dict[str, tuple[str, ...]]  # what a field is called here -> what the header may call it
TEXT: Columns = {"text": ("tweet", "text")}
LABEL: Columns = {"label": ("class", "label")}
ID: Columns = {"id": ("tweet_id", "tweetid", "tweet id", "id")}
NONE = ("", "-")  # values of start, end and span for a tweet without a span
EFFECTS = ("adr", "ade", "ae")


def load(
    root: Path | None,
    seed: int,
    *,
    tokenizer: str | None,
    vocabulary: int,
    length: int,
    lowercase: bool,
    positive_weight: float,
) -> Dataset:
    """Return the tweets of train.tsv and test.tsv as token ids int32 [n, length], y = 1 for a reaction (int64 [n]).

    Raises UserError naming the file and line that are malformed.
    """
    folder = data_folder(root, "smm4h")
    parts = []
    for name in (TRAIN, TEST):
        rows = list(_rows(folder / name, TEXT | LABEL))
        for number, row in rows:
            if row["label"].lower() not in LABELS:
                raise UserError(f"{folder / name}, line {number}: unknown label {row['label']!r}: {', '.join(LABELS)}")
        parts.append(([row["text"] for _, row in rows], [LABELS[row["label"].lower()] for _, row in rows]))
    encoder = Tokens(tokenizer, vocabulary, length, lowercase).fit(parts[0][0])
    train, test = (
        {"ids": encoder.rows(encoder.encode(texts)), "y": np.array(labels, np.int64)} for texts, labels in parts
    )
    return Dataset(train, test, {"classes": CLASSES, "positive_weight": positive_weight, **encoder.meta}, encoder.table)


def stand_in(
    root: Path | None, seed: int, *, tokenizer: str | None, vocabulary: int, length: int, **_: object
) -> Dataset:
    """Return blank tweets in two classes, as many as in the task of 2019 (25,672 and about 5,000)."""
    return blank_texts(25_672, 5_000, vocabulary, length, CLASSES, tokenizer)


def tagged(root: Path | None) -> Tagged:
    """Return the tweets of train.tsv with the spans of spans.tsv; adverse reactions are "effect". Raises UserError."""
    folder = data_folder(root, "smm4h")
    texts: dict[str, str] = {}
    for number, row in _rows(folder / TRAIN, ID | TEXT):
        if texts.setdefault(row["id"], row["text"]) != row["text"]:
            raise UserError(f"{folder / TRAIN}, line {number}: tweet {row['id']} was another text before")
    spans: dict[str, list[Span]] = {name: [] for name in texts}
    columns: Columns = {"start": ("start", "begin"), "end": ("end",), "type": ("type", "label")}
    columns |= {"span": ("span", "extraction")}
    for number, row in _rows(folder / SPANS, ID | columns):
        where, text = f"{folder / SPANS}, line {number}", texts.get(row["id"])
        if text is None:
            raise UserError(f"{where}: tweet {row['id']} is not in {TRAIN}")
        if all(row[key] in NONE for key in ("start", "end", "span")):
            continue
        if not (row["start"].isdecimal() and row["end"].isdecimal()):
            raise UserError(f"{where}: start and end must be numbers, here {row['start']!r} and {row['end']!r}")
        start, end = int(row["start"]), int(row["end"])
        if not row["span"] or text[start:end] != row["span"]:
            raise UserError(f"{where}: {row['span']!r} does not match the offsets: there is {text[start:end]!r}")
        kind = row["type"].lower()
        spans[row["id"]].append(Span(start, end, "effect" if kind in EFFECTS else kind))
    return Tagged(list(texts.values()), list(spans.values()), np.arange(len(texts)))


def _rows(path: Path, columns: Columns) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line number, fields by the keys of `columns`); a column is found by any of its names."""
    lines = read_lines(path)
    header = [_unquoted(name.strip()).lower() for name in next(lines)[1].split("\t")]
    if twice := next((name for name in header if header.count(name) > 1), None):
        raise UserError(f"{path}, line 1: the header names column {twice!r} twice")
    rows = [(number, line.split("\t")) for number, line in lines]
    if _is_quoted([field for _, fields in rows for field in fields]):
        say(f"fedkd_mpi: {path}: quotes around fields are removed, and doubled quotes are read as one", error=True)
        rows = [(number, [_unquoted(field) for field in fields]) for number, fields in rows]
    places = {}
    for key, names in columns.items():
        found = [header.index(name) for name in names if name in header]
        if not found:
            raise UserError(f"{path}, line 1: the header has no column {' or '.join(names)}: {', '.join(header)[:80]}")
        places[key] = found[0]
    for number, fields in rows:
        if len(fields) != len(header):
            raise UserError(f"{path}, line {number}: {len(fields)} fields where the header has {len(header)}")
        yield number, {key: fields[place].strip() if key != "text" else fields[place] for key, place in places.items()}


def _is_quoted(fields: Sequence[str]) -> bool:
    """Whether a table has quoted fields as spreadsheets write them: all quotes are valid, and some fields need them."""
    begun = [field for field in fields if field.startswith('"')]
    return all(QUOTED.fullmatch(field) for field in begun) and any('""' in field[1:-1] for field in begun)


def _unquoted(field: str) -> str:
    return field[1:-1].replace('""', '"') if QUOTED.fullmatch(field) else field
