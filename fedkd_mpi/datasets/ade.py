"""ADE-Corpus-V2: sentences of medical case reports, with and without an adverse effect of a drug.

DRUG-AE.rel: PubMed id|sentence|effect|start|end|drug|start|end, one relation per line, offsets in the whole document.
ADE-NEG.txt: PubMed id NEG sentence. Source: Gurulingappa et al. 2012, doi 10.1016/j.jbi.2012.04.008.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedkd_mpi.datasets import Dataset, data_folder
from fedkd_mpi.datasets.corpora import Span, Tagged, by_document
from fedkd_mpi.datasets.tokens import Tokens, blank_texts, read_lines
from fedkd_mpi.errors import UserError

POSITIVE, NEGATIVE = "DRUG-AE.rel", "ADE-NEG.txt"
CLASSES = ["no adverse effect", "adverse effect"]


class Relation(NamedTuple):
    """A line of DRUG-AE.rel: document, sentence, and effect and drug as spans of the sentence."""

    document: int
    sentence: str
    effect: Span
    drug: Span


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
    """Return the sentences as token ids, with y = 1 if an adverse effect is reported; raises UserError.

    "ids" int32 [n, length], "y" int64 [n], "group" and "document" int64 [n] (the PubMed id). Every sentence is used
    once. The test set is a fifth of the documents, the same for every seed.
    """
    folder = data_folder(root, "ade")
    found: dict[str, tuple[int, int]] = {}
    for relation in relations(folder / POSITIVE):
        found.setdefault(relation.sentence, (relation.document, 1))
    for document, sentence in _negatives(folder / NEGATIVE):
        found.setdefault(sentence, (document, 0))
    texts = list(found)
    document, y = np.array(list(found.values()), np.int64).T
    train, test = by_document(document)
    encoder = Tokens(tokenizer, vocabulary, length, lowercase).fit([texts[index] for index in train])
    ids = encoder.rows(encoder.encode(texts))
    arrays = {"ids": ids, "y": y, "group": document, "document": document}
    first, second = ({name: array[part] for name, array in arrays.items()} for part in (train, test))
    return Dataset(
        first, second, {"classes": CLASSES, "positive_weight": positive_weight, **encoder.meta}, encoder.table
    )


def stand_in(
    root: Path | None, seed: int, *, tokenizer: str | None, vocabulary: int, length: int, **_: object
) -> Dataset:
    """Return as many blank sentences as the corpus has, in two classes."""
    return blank_texts(16_738, 4_158, vocabulary, length, CLASSES, tokenizer)


def tagged(root: Path | None) -> Tagged:
    """Return the sentences of DRUG-AE.rel with all their drugs and effects; raises UserError."""
    sentences: dict[str, tuple[int, set[Span]]] = {}
    for relation in relations(data_folder(root, "ade") / POSITIVE):
        sentences.setdefault(relation.sentence, (relation.document, set()))[1].update((relation.effect, relation.drug))
    documents, spans = zip(*sentences.values(), strict=True)
    return Tagged(list(sentences), [sorted(found) for found in spans], np.array(documents, np.int64))


def relations(path: Path) -> Iterator[Relation]:
    """Yield the relations of DRUG-AE.rel; raise UserError naming a malformed line.

    The offsets are relative to the document, which is not in the corpus. So effect and drug are searched in the
    sentence at positions with the same distance as the offsets.
    """
    for number, line in read_lines(path):
        where = f"{path}, line {number}"
        fields = line.split("|")
        if len(fields) != 8:
            raise UserError(f"{where}: {len(fields)} fields where 8 are separated by |; fetch it again")
        document, sentence, effect, start, end, drug, drug_start, drug_end = fields
        numbers = (document, start, end, drug_start, drug_end)
        if not all(number.isascii() and number.isdigit() for number in numbers):
            raise UserError(f"{where}: PubMed id and offsets must be numbers, here {', '.join(numbers)}")
        for what, text, low, high in (("effect", effect, start, end), ("drug", drug, drug_start, drug_end)):
            if int(high) - int(low) != len(text) or not text:
                raise UserError(f"{where}: the {what} {text!r} does not match its offsets {low}..{high}")
        distance = int(drug_start) - int(start)
        drugs = _places(drug, sentence)
        pairs = [(at, at + distance) for at in _places(effect, sentence) if at + distance in drugs]
        if not pairs:
            raise UserError(f"{where}: the offsets of effect and drug do not match the sentence")
        at, drug_at = pairs[0]
        effect_span, drug_span = Span(at, at + len(effect), "effect"), Span(drug_at, drug_at + len(drug), "drug")
        yield Relation(int(document), sentence, effect_span, drug_span)


def _negatives(path: Path) -> Iterator[tuple[int, str]]:
    for number, line in read_lines(path):
        match = re.fullmatch(r"(\d+) NEG (.*\S.*)", line, re.ASCII)
        if match is None:
            raise UserError(f"{path}, line {number}: not of the form 'PubMed id NEG sentence': {line[:60]!r}")
        yield int(match[1]), match[2]


def _places(part: str, text: str) -> list[int]:
    return [match.start() for match in re.finditer(f"(?={re.escape(part)})", text)]
