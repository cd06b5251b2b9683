"""MIND, the Microsoft News Dataset: titles that users clicked and the news that they were shown next.

news.tsv: id, category, subcategory, title, abstract, URL, title entities, abstract entities. behaviors.tsv: impression,
user, time, clicked news, shown news with -1 for a click and -0 for none; tab-separated, without a header.
Source: Wu et al. 2020, https://msnews.github.io.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedkd_mpi.common.console import say
from fedkd_mpi.datasets import Dataset, data_folder
from fedkd_mpi.datasets.tokens import Tokens, blank_meta, blank_rows, read_lines
from fedkd_mpi.errors import UserError

NEWS, BEHAVIORS = "news.tsv", "behaviors.tsv"
NEWS_FIELDS, BEHAVIOR_FIELDS = 8, 5
SIZES = {"small": (51_282, 156_965, 73_152), "large": (101_527, 2_232_748, 376_471)}  # news; impressions: train, dev


class Impression(NamedTuple):
    """A line of behaviors.tsv, with news as rows of the table of titles."""

    user: str
    history: list[int]
    shown: list[int]
    clicked: list[int]


def _load(
    size: str,
    root: Path | None,
    seed: int,
    *,
    tokenizer: str | None,
    vocabulary: int,
    length: int,
    lowercase: bool,
    history: int,
) -> Dataset:
    """Return the impressions with a click and a news that was not clicked; the test set is dev. Raises UserError.

    "history" int32 [n, history] are the last clicks, "candidates" int32 [n, most] the shown news; both are rows of
    "titles" int32 [news + 1, length], in which row 0 is no news. "clicked" int8 [n, most] are the clicks. "group"
    int64 [n] is the user.
    """
    folders = [data_folder(root, f"mind_{size}", part) for part in (0, 1)]
    seen, unseen = (_titles(folder / NEWS) for folder in folders)
    titles = seen | unseen
    rows = {name: row for row, name in enumerate(titles, 1)}
    parts = [list(_impressions(folder / BEHAVIORS, rows)) for folder in folders]
    encoder = Tokens(tokenizer, vocabulary, length, lowercase).fit(list(seen.values()))
    rows_of_titles = encoder.rows(encoder.encode(list(titles.values())))
    table = np.concatenate([np.full((1, length), encoder.pad, np.int32), rows_of_titles])
    users = {name: number for number, name in enumerate(sorted({one.user for part in parts for one in part}))}
    train, test = (_arrays(part, users, history, folder) for part, folder in zip(parts, folders, strict=True))
    return Dataset(train, test, encoder.meta, {"titles": table, **encoder.table})


load_small, load_large = partial(_load, "small"), partial(_load, "large")


def _stand_in(
    size: str,
    root: Path | None,
    seed: int,
    *,
    tokenizer: str | None,
    vocabulary: int,
    length: int,
    history: int,
    **_: object,
) -> Dataset:
    """Return impressions of blank titles, as many as officially: five news shown to a user with three clicks."""
    news, *counts = SIZES[size]

    def part(count: int) -> dict[str, np.ndarray]:
        shown = np.arange(1, 6, dtype=np.int32)
        clicks = np.zeros(history, np.int32)
        clicks[:3] = 6, 7, 8
        rows = {"history": clicks, "candidates": shown, "clicked": (shown == 1).astype(np.int8)}
        arrays = {name: np.broadcast_to(row, (count, len(row))) for name, row in rows.items()}
        return arrays | {"group": np.arange(count) // 3}

    meta = blank_meta(vocabulary, length, tokenizer)
    titles = blank_rows(news + 1, length, meta["pad"])
    return Dataset(part(counts[0]), part(counts[1]), meta, {"titles": titles})


stand_in_small, stand_in_large = partial(_stand_in, "small"), partial(_stand_in, "large")


def _titles(path: Path) -> dict[str, str]:
    titles: dict[str, str] = {}
    for number, line in read_lines(path):
        fields = line.split("\t")
        if len(fields) != NEWS_FIELDS:
            raise UserError(f"{path}, line {number}: {len(fields)} fields where {NEWS_FIELDS} are separated by tabs")
        if not fields[0] or titles.setdefault(fields[0], fields[3]) != fields[3]:
            raise UserError(f"{path}, line {number}: news {fields[0]!r} has no id, or had another title before")
    return titles


def _impressions(path: Path, rows: dict[str, int]) -> Iterator[Impression]:
    left_out = []
    for number, line in read_lines(path):
        where = f"{path}, line {number}"
        fields = line.split("\t")
        if len(fields) != BEHAVIOR_FIELDS:
            raise UserError(f"{where}: {len(fields)} fields where {BEHAVIOR_FIELDS} are separated by tabs")
        _, user, _, before, shown = fields
        pairs = [item.rpartition("-") for item in shown.split()]
        for name, _, click in pairs:
            if click not in ("0", "1"):
                raise UserError(f"{where}: {name}-{click} does not end in -1 (clicked) or -0 (not clicked)")
        unknown = next((name for name in (*before.split(), *(name for name, _, _ in pairs)) if name not in rows), None)
        if unknown is not None:
            raise UserError(f"{where}: news {unknown} is not in {NEWS}")
        clicked = [int(click) for _, _, click in pairs]
        if 0 < sum(clicked) < len(clicked):  # otherwise there is nothing to rank
            yield Impression(
                user, [rows[name] for name in before.split()], [rows[name] for name, _, _ in pairs], clicked
            )
        else:
            left_out.append(number)
    if left_out:
        say(
            f"fedkd_mpi: {path}: {len(left_out)} impressions without a click, or without a news that was not clicked, "
            f"are left out; the first is line {left_out[0]}",
            error=True,
        )


def _arrays(part: list[Impression], users: dict[str, int], history: int, folder: Path) -> dict[str, np.ndarray]:
    if not part:
        raise UserError(f"{folder / BEHAVIORS}: no impression has both a click and a news that was not clicked")
    most = max(len(one.shown) for one in part)
    arrays: dict[str, np.ndarray] = {
        "history": np.zeros((len(part), history), np.int32),
        "candidates": np.zeros((len(part), most), np.int32),
        "clicked": np.zeros((len(part), most), np.int8),
    }
    for row, one in enumerate(part):
        last = one.history[-history:]
        arrays["history"][row, : len(last)] = last
        arrays["candidates"][row, : len(one.shown)] = one.shown
        arrays["clicked"][row, : len(one.shown)] = one.clicked
    return arrays | {"group": np.array([users[one.user] for one in part], np.int64)}
