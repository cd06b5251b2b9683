"""Corpora for named-entity recognition, one or several per data set: spans of texts are converted to BIO tags."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fedkd_mpi.common.registry import function_of, resolve
from fedkd_mpi.datasets import Dataset
from fedkd_mpi.datasets.tokens import Tokens, blank_meta, blank_rows

if TYPE_CHECKING:
    from tokenizers import Encoding

CORPORA = {
    "ade": "fedkd_mpi.datasets.ade:tagged",
    "cadec": "fedkd_mpi.datasets.cadec:tagged",
    "smm4h": "fedkd_mpi.datasets.smm4h:tagged",
}
TEST_FRACTION, TEST_SEED = 0.2, 2012
UNLABELLED = -1


class Span(NamedTuple):
    """An entity of type `kind` that consists of the characters start..end-1 of a text."""

    start: int
    end: int
    kind: str


class Tagged(NamedTuple):
    """Texts, their spans, and the document of each text, int64 [n]."""

    texts: Sequence[str]
    spans: Sequence[Sequence[Span]]
    document: np.ndarray


def load(
    root: Path | None,
    seed: int,
    *,
    corpora: Sequence[str],
    tokenizer: str | None,
    vocabulary: int,
    length: int,
    lowercase: bool,
) -> Dataset:
    """Return the texts of the corpora as token ids and BIO tags; raises UserError.

    "ids" int32 and "tags" int8 [n, length]; "missed" int64 [n], the number of entities beyond the length; "document"
    int64 [n]; "group" int64 [n], the corpus, or the document if there is only one corpus. The test set is a fifth of
    the documents of every corpus, the same for every seed. meta["kinds"] are the types of entities.
    """
    parts = [resolve(name, CORPORA, "data.corpora", function_of("root"))(root) for name in corpora]
    kinds = sorted({span.kind for part in parts for spans in part.spans for span in spans})
    splits = [by_document(part.document) for part in parts]
    training = [part.texts[at] for part, (train, _) in zip(parts, splits, strict=True) for at in train]
    encoder = Tokens(tokenizer, vocabulary, length, lowercase).fit(training)
    sides: tuple[list[dict[str, np.ndarray]], ...] = ([], [])
    documents = 0
    for index, (part, split) in enumerate(zip(parts, splits, strict=True)):
        encodings = encoder.encode(part.texts)
        tags, missed = tag(encodings, part.spans, kinds, length)
        document = documents + np.unique(part.document, return_inverse=True)[1].astype(np.int64)
        documents = int(document.max()) + 1
        group = document if len(parts) == 1 else np.full(len(document), index, np.int64)
        arrays = {"ids": encoder.rows(encodings), "tags": tags, "missed": missed, "group": group, "document": document}
        for side, rows in zip(sides, split, strict=True):
            side.append({name: array[rows] for name, array in arrays.items()})
    train, test = ({name: np.concatenate([of[name] for of in side]) for name in side[0]} for side in sides)
    return Dataset(train, test, {"kinds": kinds, "corpora": list(corpora), **encoder.meta}, encoder.table)


def stand_in(
    root: Path | None,
    seed: int,
    *,
    corpora: Sequence[str],
    tokenizer: str | None,
    vocabulary: int,
    length: int,
    **_: object,
) -> Dataset:
    """Return blank texts without entities, 3,400 training texts per corpus; the types are drug and effect."""

    def part(count: int) -> dict[str, np.ndarray]:
        group = np.arange(count * len(corpora)) // count if len(corpora) > 1 else np.arange(count)
        ids = blank_rows(len(group), length, meta["pad"])
        tags = -(ids[0] == meta["pad"]).astype(np.int8)  # 0 is O, -1 none
        tokens = {"ids": ids, "tags": np.broadcast_to(tags, ids.shape)}
        return {**tokens, "missed": np.zeros(len(group), np.int64), "group": group, "document": np.arange(len(group))}

    meta = {"kinds": ["drug", "effect"], "corpora": list(corpora), **blank_meta(vocabulary, length, tokenizer)}
    return Dataset(part(3_400), part(850), meta)


def by_document(document: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the (train, test) samples; the test set is a fifth of the documents, the same for every seed."""
    names = np.unique(document)
    # A fixed seed instead of the run's seed, so that runs with different seeds have the same test set.
    order = np.random.Generator(np.random.Philox(TEST_SEED)).permutation(names)
    in_test = np.isin(document, order[: max(1, round(TEST_FRACTION * len(names)))])
    return np.flatnonzero(~in_test), np.flatnonzero(in_test)


def tag(
    encodings: Sequence[Encoding], spans: Sequence[Sequence[Span]], kinds: Sequence[str], length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return BIO tags int8 [n, length] of the first piece of every word, and the number of missed entities [n].

    0 is O, 1 + 2k is B and 2 + 2k is I of type k; all other pieces are UNLABELLED. An entity contains every word that
    it overlaps. Of several entities that share a word, only the longest is used. An entity that does not end within the
    length is missed, and its words are not labelled.
    """
    tags = np.full((len(encodings), length), UNLABELLED, np.int8)
    missed = np.zeros(len(encodings), np.int64)
    for row, (encoding, found) in enumerate(zip(encodings, spans, strict=True)):
        words = list(_words(encoding))
        tags[row, [piece for piece, _, _ in words]] = 0
        cut = words[-1][2] if encoding.overflowing and words else np.inf
        taken: set[int] = set()
        for span in sorted(found, key=lambda span: (span.start - span.end, span.start, span.kind)):
            touched = [piece for piece, start, end in words if start < span.end and span.start < end]
            if span.end > cut:
                missed[row] += 1
                tags[row, [piece for piece in touched if piece not in taken]] = UNLABELLED
            elif not taken.intersection(touched):
                inside = 2 + 2 * kinds.index(span.kind)
                tags[row, touched] = inside
                tags[row, touched[:1]] = inside - 1
            taken.update(touched)
    return tags, missed


def _words(encoding: Encoding) -> Iterator[tuple[int, int, int]]:
    """Yield (index of the first piece, first character, end) of every word."""
    first, before = 0, None
    for piece, word in enumerate([*encoding.word_ids, None]):
        if word != before and before is not None:
            yield first, encoding.offsets[first][0], encoding.offsets[piece - 1][1]
        if word != before:
            first, before = piece, word
