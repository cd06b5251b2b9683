"""Corpora in the official layouts are read as they are written; malformed ones end in one line with file and line."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mpirun import run
from text_data import change_line, write_ade, write_cadec, write_mind, write_smm4h

from fedkd_mpi.datasets import corpora, load
from fedkd_mpi.datasets.ade import relations
from fedkd_mpi.datasets.ade import tagged as ade_tagged
from fedkd_mpi.datasets.cadec import tagged as cadec_tagged
from fedkd_mpi.datasets.corpora import Span
from fedkd_mpi.datasets.smm4h import tagged as smm4h_tagged
from fedkd_mpi.datasets.tokens import Tokens
from fedkd_mpi.errors import UserError

pytest.importorskip("tokenizers", reason="tokenizers is not installed (extra text)")
SMALL = {"vocabulary": 300, "length": 24}


def words(tagged: corpora.Tagged, index: int) -> list[tuple[str, str]]:
    text = tagged.texts[index]
    return [(text[start:end], kind) for start, end, kind in tagged.spans[index]]


def test_ade_is_split_by_document_and_every_sentence_has_its_label(tmp_path):
    folder = write_ade(tmp_path)
    data = load("ade", tmp_path, 0, SMALL)
    assert len(data.train["y"]) + len(data.test["y"]) == 90
    assert int(data.train["y"].sum() + data.test["y"].sum()) == 30
    assert set(data.train["document"]).isdisjoint(data.test["document"])
    assert len(set(data.test["document"])) == 6
    assert {name: array.dtype for name, array in data.train.items()}["ids"] == np.int32
    assert np.array_equal(data.train["group"], data.train["document"])
    other = load("ade", tmp_path, 1, SMALL)
    assert np.array_equal(data.test["ids"], other.test["ids"])
    assert json.loads(json.dumps(data.meta)) == data.meta
    # A repeated sentence is one sentence.
    with (folder / "ADE-NEG.txt").open("a") as file:
        file.write((folder / "ADE-NEG.txt").read_text().split("\n")[0] + "\n")
    assert len(load("ade", tmp_path, 0, SMALL).train["y"]) + len(data.test["y"]) == 90


def test_ade_spans_are_found_by_the_distance_of_their_offsets(tmp_path):
    path = tmp_path / "x.rel"
    sentence = "Rash after aspirin, then Rash after aspirin."
    path.write_text(f"7|{sentence}|Rash|525|529|aspirin|536|543\n")
    (relation,) = relations(path)
    assert relation.effect in (Span(0, 4, "effect"), Span(25, 29, "effect"))
    assert relation.drug.start - relation.effect.start == 11
    path.write_text(f"7|{sentence}|Rash|500|504|aspirin|536|543\n")
    (relation,) = relations(path)
    assert (relation.effect.start, relation.drug.start) == (0, 36)


def test_cadec_posts_are_cut_into_sentences_and_their_spans_go_along(tmp_path):
    write_cadec(tmp_path, posts=2)
    tagged = cadec_tagged(tmp_path)
    assert tagged.texts[:3] == ["I took Lipitor for a week.", "Sore legs and arms, dr.", "said stop!"]
    assert words(tagged, 0) == [("Lipitor", "drug")]
    assert words(tagged, 1) == [("Sore legs", "effect"), ("Sore legs and arms", "effect")]
    assert tagged.document.tolist() == [0] * 4 + [1] * 4


def test_smm4h_spans_and_labels(tmp_path):
    write_smm4h(tmp_path)
    tagged = smm4h_tagged(tmp_path)
    assert words(tagged, 1) == [("hepatitis", "effect")]
    assert words(tagged, 2) == []
    data = load("smm4h", tmp_path, 0, SMALL)
    assert data.train["y"].tolist() == [number % 2 for number in range(40)]
    assert len(data.test["ids"]) == 40


def test_one_corpus_is_one_group(tmp_path):
    write_all(tmp_path)
    data = load("medical_ner", tmp_path, 0, {**SMALL, "corpora": ["cadec", "ade", "smm4h"]})
    assert np.bincount(data.train["group"]).tolist() == [40, 24, 32]
    assert set(data.train["document"]).isdisjoint(data.test["document"])
    assert data.meta["kinds"] == ["drug", "effect"]
    alone = load("medical_ner", tmp_path, 0, {**SMALL, "corpora": ["cadec"]})
    assert len(np.unique(alone.train["group"])) == 10


def tags_of(text: str, spans: list[Span], length: int = 24) -> tuple[list[int], int]:
    encoder = Tokens(None, 120, length, True).fit(["the quick brown fox took aspirin and got a severe rash, twice"])
    tags, missed = corpora.tag(encoder.encode([text]), [spans], ["drug", "effect"], length)
    return tags[0][tags[0] >= 0].tolist(), int(missed[0])


def test_bio_tags_follow_the_words_that_a_span_touches():
    text = "aspirin: severe rash!"
    drug, effect = Span(0, 7, "drug"), Span(9, 20, "effect")
    assert tags_of(text, [drug, effect]) == ([1, 0, 3, 4, 0], 0)  # aspirin : severe rash !
    assert tags_of(text, [Span(11, 17, "effect")]) == ([0, 0, 3, 4, 0], 0)  # within words: the whole words
    assert tags_of(text, [Span(16, 20, "drug"), effect]) == ([0, 0, 3, 4, 0], 0)  # of two that overlap the longest
    # Unlabelled where it is cut off: at 9 tokens, less [CLS] and [SEP].
    tags, missed = tags_of(
        "severe rash and severe rash and severe rash", [Span(0, 11, "effect"), Span(32, 43, "effect")], 9
    )
    assert (tags[:3], missed) == ([3, 4, 0], 1)


def test_pieces_of_a_word_have_one_tag():
    encoder = Tokens(None, 80, 40, True).fit(["ab cd ef"])
    encodings = encoder.encode(["abcdef cd"])
    assert len(encodings[0].ids) > 5
    tags, _ = corpora.tag(encodings, [[Span(0, 6, "drug")]], ["drug"], 40)
    assert tags[0][:4].tolist() == [-1, 1, -1, -1]
    assert tags[0][tags[0] >= 0].tolist() == [1, 0]


def test_mind_impressions_and_titles(tmp_path):
    folders = write_mind(tmp_path)
    data = load("mind_small", tmp_path, 0, {**SMALL, "history": 3})
    assert (len(data.train["history"]), len(data.test["history"])) == (36, 24)
    assert data.train["history"].shape == (36, 3)
    assert data.tables["titles"].shape == (81, 24)
    row = (folders[0] / "behaviors.tsv").read_text().split("\n")[5].split("\t")
    shown = [item.split("-") for item in row[4].split()]
    assert data.train["candidates"][5].tolist() == [int(name[1:]) + 1 for name, _ in shown]
    assert data.train["clicked"][5].tolist() == [int(click) for _, click in shown]
    last = [int(name[1:]) + 1 for name in row[3].split()][-3:]
    assert [news for news in data.train["history"][5].tolist() if news] == last
    assert len(set(data.train["group"])) == 12
    # Nothing to rank: an impression without a click is left out.
    change_line(folders[1] / "behaviors.tsv", 1, lambda line: line.replace("-1", "-0"))
    assert len(load("mind_small", tmp_path, 0, SMALL).test["history"]) == 23


def field(index: int, value: str, separator: str) -> Callable[[str], str]:
    def change(line: str) -> str:
        fields = line.split(separator)
        fields[index] = value
        return separator.join(fields)

    return change


ADE, CADEC, MIND, SMM4H = "ade-corpus-v2", "cadec", "MINDsmall_train", "smm4h"
NER = {"corpora": ["ade"]}
# data set, its keys, file, line, how it is changed, what is said
MALFORMED: dict[str, tuple[str, dict[str, Any], str, int, Callable[[str], str], str]] = {
    "ade cut off": ("ade", {}, f"{ADE}/DRUG-AE.rel", 9, lambda line: line[:40], "fields where 8"),
    "ade no number": ("ade", {}, f"{ADE}/DRUG-AE.rel", 2, field(3, "x", "|"), "must be numbers"),
    "ade length": ("ade", {}, f"{ADE}/DRUG-AE.rel", 3, field(4, "9999", "|"), "does not match its offsets"),
    "ade other text": (
        "medical_ner",
        NER,
        f"{ADE}/DRUG-AE.rel",
        4,
        field(1, "Other words.", "|"),
        "do not match the sentence",
    ),
    "ade negative": ("ade", {}, f"{ADE}/ADE-NEG.txt", 5, lambda line: line.replace(" NEG ", " "), "not of the form"),
    "smm4h label": ("smm4h", {}, f"{SMM4H}/train.tsv", 7, field(2, "maybe", "\t"), "unknown label 'maybe'"),
    "smm4h fields": (
        "smm4h",
        {},
        f"{SMM4H}/test.tsv",
        3,
        lambda line: line + "\tmore",
        "5 fields where the header has 4",
    ),
    "smm4h header": ("smm4h", {}, f"{SMM4H}/train.tsv", 1, field(2, "grade", "\t"), "no column class or label"),
    "smm4h offsets": (
        "medical_ner",
        {"corpora": ["smm4h"]},
        f"{SMM4H}/spans.tsv",
        4,
        field(1, "1", "\t"),
        "does not match the offsets",
    ),
    "smm4h tweet": (
        "medical_ner",
        {"corpora": ["smm4h"]},
        f"{SMM4H}/spans.tsv",
        4,
        field(0, "x", "\t"),
        "not in train",
    ),
    "cadec offsets": (
        "medical_ner",
        {"corpora": ["cadec"]},
        f"{CADEC}/original/LIPITOR.3.ann",
        1,
        lambda line: line.replace("7 14", "8 15"),
        "does not match the offsets",
    ),
    "cadec type": (
        "medical_ner",
        {"corpora": ["cadec"]},
        f"{CADEC}/original/LIPITOR.3.ann",
        2,
        lambda line: line.replace("ADR", "ADX"),
        "unknown type 'ADX'",
    ),
    "cadec cut off": (
        "medical_ner",
        {"corpora": ["cadec"]},
        f"{CADEC}/original/LIPITOR.3.ann",
        3,
        lambda line: line[:9],
        "not of the form",
    ),
    "mind news": ("mind_small", {}, f"{MIND}/news.tsv", 4, lambda line: line[:9], "fields where 8"),
    "mind behaviour": ("mind_small", {}, f"{MIND}/behaviors.tsv", 4, lambda line: line[:9], "fields where 5"),
    "mind click": (
        "mind_small",
        {},
        f"{MIND}/behaviors.tsv",
        4,
        lambda line: line.replace("-1", "-2"),
        "does not end in -1",
    ),
    "mind unknown": (
        "mind_small",
        {},
        f"{MIND}/behaviors.tsv",
        4,
        field(3, "N77777", "\t"),
        "N77777 is not in news.tsv",
    ),
}


def write_all(root: Path) -> None:
    for write in (write_ade, write_smm4h, write_cadec, write_mind):
        write(root)


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_line_is_named(tmp_path, case):
    name, keys, file, number, change, message = MALFORMED[case]
    write_all(tmp_path)
    change_line(tmp_path / file, number, change)
    with pytest.raises(UserError, match=message) as caught:
        load(name, tmp_path, 0, {**SMALL, **keys})
    assert str(caught.value).startswith(f"{tmp_path / file}, line {number}: ")
    assert "\n" not in str(caught.value)


FILES = [
    ("ade", {}, f"{ADE}/DRUG-AE.rel"),
    ("ade", {}, f"{ADE}/ADE-NEG.txt"),
    ("smm4h", {}, f"{SMM4H}/test.tsv"),
    ("medical_ner", {"corpora": ["smm4h"]}, f"{SMM4H}/spans.tsv"),
    ("mind_small", {}, "MINDsmall_dev/behaviors.tsv"),
]


@pytest.mark.parametrize(("name", "keys", "file"), FILES)
@pytest.mark.parametrize("fault", ["encoding", "empty", "missing"])
def test_an_unreadable_file_is_named(tmp_path, name, keys, file, fault):
    write_all(tmp_path)
    path = tmp_path / file
    if fault == "missing":
        path.unlink()
    else:
        path.write_bytes("Fieber über Nacht\n".encode("latin-1") if fault == "encoding" else b"")
    with pytest.raises(UserError) as caught:
        load(name, tmp_path, 0, {**SMALL, **keys})
    assert str(caught.value).startswith(str(path) + (", line 1: not UTF-8" if fault == "encoding" else ":"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "folder"), [("ade", ADE), ("smm4h", SMM4H), ("mind_small", MIND)])
def test_a_missing_folder_says_where_to_put_it(tmp_path, name, folder):
    with pytest.raises(UserError, match=rf"{folder}.*FEDKD_DATA or data\.root"):
        load(name, tmp_path, 0, SMALL)


def test_a_trained_vocabulary_is_the_same_in_every_process(tmp_path):
    write_ade(tmp_path)
    program = (
        "import hashlib, pathlib, sys; from fedkd_mpi.datasets import load;"
        "d = load('ade', pathlib.Path(sys.argv[1]), 0, {'vocabulary': 200, 'length': 30});"
        "print(hashlib.sha256(d.train['ids'].tobytes() + d.test['ids'].tobytes()).hexdigest(), 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    printed = {run(command).stdout for _ in range(3)}
    assert len(printed) == 1
    assert printed.pop().split()[1] == "False"


def test_a_vocabulary_too_small_and_a_folder_without_a_tokenizer_are_named(tmp_path):
    write_ade(tmp_path)
    with pytest.raises(UserError, match=r"data\.vocabulary=20: the characters of these texts alone need \d+"):
        load("ade", tmp_path, 0, {"vocabulary": 20})
    with pytest.raises(UserError, match=r"neither tokenizer\.json nor vocab\.txt; nothing is downloaded"):
        load("ade", tmp_path, 0, {"tokenizer": str(tmp_path)})
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"data\.tokenizer="):
        load("ade", tmp_path, 0, {"tokenizer": str(tmp_path)})


@pytest.mark.skipif("FEDKD_DATA" not in os.environ, reason="FEDKD_DATA is not set")
def test_the_real_ade_corpus_has_its_published_numbers():
    root = Path(os.environ["FEDKD_DATA"])
    if not (root / ADE).is_dir():
        pytest.skip(f"{root / ADE} is not there")
    data = load("ade", root, 0)
    assert len(data.train["y"]) + len(data.test["y"]) == 4_271 + 16_625
    assert int(data.train["y"].sum() + data.test["y"].sum()) == 4_271
    assert len(list(relations(root / ADE / "DRUG-AE.rel"))) == 6_821
    tagged = ade_tagged(root)
    assert len(tagged.texts) == 4_271
    assert all(tagged.texts[i][s.start : s.end].strip() for i in range(4_271) for s in tagged.spans[i])


def test_fragments_in_any_order_and_the_known_faults_of_cadec(tmp_path, capsys):
    folder = write_cadec(tmp_path, posts=2)
    text = (folder / "text/LIPITOR.0.txt").read_text(encoding="utf-8")
    at = text.index("Sore")
    turned = f"T3\tADR {at + 14} {at + 18};{at} {at + 4}\tarms Sore"
    change_line(folder / "original/LIPITOR.0.ann", 3, lambda _: turned)
    (folder / "text/LIPITOR.40.txt").write_bytes(b"")
    (folder / "text/LIPITOR.944.txt").write_text(text, encoding="utf-8")
    lines = ["T1\tDrug 7 14\tLipitor", "#1\tnote", "#2\tnote", "T2\tADR 1 5\tSore"]
    (folder / "original/LIPITOR.944.ann").write_text("\n".join(lines), encoding="utf-8")
    (folder / "text/._LIPITOR.1.txt").write_bytes(b"\0\5\x16\7")
    tagged = cadec_tagged(tmp_path)
    assert words(tagged, 1) == [("Sore legs", "effect"), ("Sore legs and arms", "effect")]
    said = capsys.readouterr().err
    assert "2 known faults skipped: LIPITOR.40 (empty), LIPITOR.944 line 4" in said
    assert len(said.splitlines()) == 1


def change_file(path: Path, change: Callable[[str], str]) -> None:
    path.write_bytes(change(path.read_bytes().decode()).encode())


SAME = {  # what people's tools do to a file without changing what it says
    "CRLF": lambda text: text.replace("\n", "\r\n"),
    "BOM": lambda text: "\ufeff" + text,
    "blank lines": lambda text: text.replace("\n", "\n\n") + "\n\n",
    "no end": lambda text: text.rstrip("\n"),
}


@pytest.mark.parametrize("change", SAME)
@pytest.mark.parametrize(
    ("name", "keys", "files"),
    [
        ("ade", {}, [f"{ADE}/DRUG-AE.rel", f"{ADE}/ADE-NEG.txt"]),
        ("smm4h", {}, [f"{SMM4H}/train.tsv", f"{SMM4H}/test.tsv"]),
        ("medical_ner", {"corpora": ["smm4h"]}, [f"{SMM4H}/train.tsv", f"{SMM4H}/spans.tsv"]),
        ("medical_ner", {"corpora": ["cadec"]}, ["cadec/original/LIPITOR.3.ann"]),
        ("mind_small", {}, ["MINDsmall_train/news.tsv", "MINDsmall_dev/behaviors.tsv"]),
    ],
)
def test_line_ends_marks_and_blank_lines_change_nothing(tmp_path, name, keys, files, change):
    write_all(tmp_path)
    before = load(name, tmp_path, 0, {**SMALL, **keys})
    for file in files:
        change_file(tmp_path / file, SAME[change])
    after = load(name, tmp_path, 0, {**SMALL, **keys})
    for part in ("train", "test", "tables"):
        for key, array in getattr(before, part).items():
            assert np.array_equal(array, getattr(after, part)[key])


def quoted(line: str) -> str:
    *fields, text = line.split("\t")
    return "\t".join([*fields, '"' + text.replace('"', '""') + '"'])


def test_smm4h_fields_in_quotes_other_headers_and_tweets_without_spans(tmp_path, capsys):
    write_all(tmp_path)
    folder = tmp_path / SMM4H
    for name in ("train.tsv", "test.tsv"):  # quotes that are text: at a start, within, alone
        change_file(folder / name, lambda text: text.replace("lithium helped", '"so" lithium "helped"'))
        change_line(folder / name, 2, lambda line: line.replace("lithium", '"lithium"'))
    before = load("smm4h", tmp_path, 0, SMALL)
    assert "quotes" not in capsys.readouterr().err
    spans = load("medical_ner", tmp_path, 0, {**SMALL, "corpora": ["smm4h"]})
    for name in ("train.tsv", "test.tsv"):
        lines = (folder / name).read_text().split("\n")
        lines[0] = "tweetid\tuser_id\tlabel\ttext"
        (folder / name).write_text("\n".join([lines[0], *(quoted(line) if line else line for line in lines[1:])]))
    change_file(folder / "spans.tsv", lambda text: text + "0\t-\t-\tnoADR\t-\n2\t\t\tnoADR\t\n")
    after = load("smm4h", tmp_path, 0, SMALL)
    assert "doubled quotes are read as one" in capsys.readouterr().err
    again = load("medical_ner", tmp_path, 0, {**SMALL, "corpora": ["smm4h"]})
    for old, new in ((before, after), (spans, again)):
        for key, array in old.train.items():
            assert np.array_equal(array, new.train[key])
    change_line(folder / "train.tsv", 1, lambda line: line + "\ttext")
    with pytest.raises(UserError, match="line 1: the header names column 'text' twice"):
        load("smm4h", tmp_path, 0, SMALL)


def test_mind_names_news_of_two_titles_and_counts_what_it_leaves_out(tmp_path, capsys):
    write_all(tmp_path)
    news, behaviors = tmp_path / "MINDsmall_train/news.tsv", tmp_path / "MINDsmall_train/behaviors.tsv"
    change_line(behaviors, 3, lambda line: line.replace("-1", "-0"))
    count = len(load("mind_small", tmp_path, 0, SMALL).train["group"])
    assert count == len(behaviors.read_text().splitlines()) - 1
    assert "1 impressions without a click" in capsys.readouterr().err
    change_line(news, 5, lambda line: line.replace("N4", "N3"))
    with pytest.raises(UserError, match=r"line 5: news 'N3' .* another title before"):
        load("mind_small", tmp_path, 0, SMALL)
