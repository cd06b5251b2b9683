"""Small corpora in the layouts of the official files, whose labels follow from their words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

DRUGS = ("aspirin", "clozapine", "methotrexate", "lithium", "insulin")
EFFECTS = ("severe rash", "hepatitis", "acute renal failure", "neutropenia")
CALM = ("was given without harm", "lowered the fever", "is taken twice a day", "helped at once")


def write_ade(root: Path, documents: int = 30) -> Path:
    """Three sentences of every document: one or two relations in the first, the others without an adverse effect."""
    draw = np.random.default_rng(0)
    positive, negative = [], []
    for number in range(documents):
        drug, effect, other = DRUGS[number % 5], EFFECTS[number % 4], EFFECTS[(number + 1) % 4]
        sentence = f"Case {number}: {drug} caused {effect}" + (f" and {other}." if number % 3 == 0 else ".")
        for found in (effect, other) if number % 3 == 0 else (effect,):
            base = 100 * number  # the sentence's own place in the document, which no file says
            at, drug_at = base + sentence.index(found), base + sentence.index(drug)
            fields = (1000 + number, sentence, found, at, at + len(found), drug, drug_at, drug_at + len(drug))
            positive.append("|".join(map(str, fields)))
        for index in range(2):
            calm = CALM[draw.integers(4)]
            negative.append(f"{1000 + number} NEG Patient {number}.{index}: {DRUGS[draw.integers(5)]} {calm}.")
    folder = root / "ade-corpus-v2"
    folder.mkdir(parents=True)
    (folder / "DRUG-AE.rel").write_text("\n".join(positive) + "\n", encoding="utf-8")
    (folder / "ADE-NEG.txt").write_text("\n".join(negative) + "\n", encoding="utf-8")
    return folder


def write_smm4h(root: Path, count: int = 40) -> Path:
    folder = root / "smm4h"
    folder.mkdir(parents=True)
    for part, first in (("train", 0), ("test", count)):
        rows, spans = ["tweet_id\tuser_id\tclass\ttweet"], ["tweet_id\tstart\tend\ttype\tspan"]
        for number in range(first, first + count):
            effect = EFFECTS[number % 4]
            text = (
                f"day {number} on lithium: {effect} again"
                if number % 2
                else f"lithium {CALM[number % 4]}, day {number}"
            )
            rows.append(f"{number}\tu{number}\t{number % 2}\t{text}")
            if number % 2:
                at = text.index(effect)
                spans.append(f"{number}\t{at}\t{at + len(effect)}\tADR\t{effect}")
        (folder / f"{part}.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
        if part == "train":
            (folder / "spans.tsv").write_text("\n".join(spans) + "\n", encoding="utf-8")
    return folder


def write_cadec(root: Path, posts: int = 12) -> Path:
    folder = root / "cadec"
    for name in ("text", "original"):
        (folder / name).mkdir(parents=True)
    for number in range(posts):
        text = f"I took Lipitor for a week. Sore legs and arms, dr. said stop!\nNow {number} days without pain."
        at = text.index("Sore")
        lines = [
            "T1\tDrug 7 14\tLipitor",
            f"T2\tADR {at} {at + 9}\tSore legs",
            f"T3\tADR {at} {at + 4};{at + 14} {at + 18}\tSore arms",
            "#1\tAnnotatorNotes T2\tmyalgia",
        ]
        (folder / f"text/LIPITOR.{number}.txt").write_text(text, encoding="utf-8")
        (folder / f"original/LIPITOR.{number}.ann").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def write_mind(root: Path, users: int = 12) -> list[Path]:
    """Users who click only what is of their own topic: the first word of a title."""
    draw = np.random.default_rng(0)
    folders = []
    for part, count in (("train", 3), ("dev", 2)):
        folder = root / f"MINDsmall_{part}"
        folder.mkdir(parents=True)
        names = [f"N{100 * (part == 'dev') + number}" for number in range(40)]
        news = [
            f"{name}\tnews\tlocal\t{('sports', 'politics')[place % 2]} story {place}\tabstract\thttps://x/{name}\t[]\t[]"
            for place, name in enumerate(names)
        ]
        rows = []
        for user in range(users):
            likes, others = names[user % 2 :: 2], names[1 - user % 2 :: 2]
            for _ in range(count):
                history = " ".join(draw.choice(likes, draw.integers(0, 5), replace=False))
                shown = [f"{draw.choice(likes)}-1", *(f"{name}-0" for name in draw.choice(others, 6, replace=False))]
                shown = " ".join(draw.permutation(shown))
                rows.append(f"{len(rows)}\tU{user}\t11/11/2019 9:00:00 AM\t{history}\t{shown}")
        (folder / "news.tsv").write_text("\n".join(news) + "\n", encoding="utf-8")
        (folder / "behaviors.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
        folders.append(folder)
    return folders


def change_line(path: Path, number: int, change: Callable[[str], str]) -> None:
    """Rewrite one line of a file, counted from 1."""
    lines = path.read_text(encoding="utf-8").split("\n")
    lines[number - 1] = change(lines[number - 1])
    path.write_text("\n".join(lines), encoding="utf-8")
