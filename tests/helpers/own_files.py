"""Small files of a user's own: a table, arrays, a folder of pictures, a saved folder of the datasets library."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

CLASSES = ("zebra", "Äpfel", "cat 2")  # neither sorted nor ASCII
SITES = ("site 10", "site 9", "site 2")


def draw(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def table(path: Path, rows: int = 90, separator: str = ",") -> Path:
    """Write features "a", "b, \"c\"", a category, a text, a class, an owner and a name for each row."""
    rng = draw()
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, delimiter=separator)
        writer.writerow(["name", "a", 'b, "c"', "colour", "note", "kind", "site"])
        for row in range(rows):
            label = row % 3
            number = rng.normal(loc=label, scale=0.3)
            note = f"{CLASSES[label]} seen\nagain, {row}"
            fields = [f"r{row:03d}", number, rng.normal(), ("red", "blue")[row % 2], note, CLASSES[label]]
            writer.writerow([*fields, SITES[row // 3 % 3]])
    return path


def arrays(path: Path, count: int = 60, **more: np.ndarray) -> Path:
    """Write images of bytes [n, 6, 5] "x", classes "y" 0, 3, 7 and owners "client"."""
    rng, y = draw(1), np.array([7, 0, 3])[np.arange(count) % 3]
    x = rng.integers(0, 100, (count, 6, 5)).astype(np.uint8) + (20 * y[:, None, None]).astype(np.uint8)
    np.savez(path, **{"x": x, "y": y, "client": np.arange(count) % 4 * 5, **more})
    return path


def pictures(folder: Path, each: int = 8, levels: bool = False) -> Path:
    """Write pictures of all sizes, modes and kinds of file, in folders of classes."""
    from PIL import Image

    rng = draw(2)
    for part in ("train", "test") if levels else ("",):
        for label, name in enumerate(CLASSES):
            place = folder / part / name
            place.mkdir(parents=True)
            for number in range(each):
                kind = ("png", "jpg", "bmp", "gif")[number % 4]
                pixels = rng.integers(0, 60, (9 + number, 12, 3)).astype(np.uint8) + np.uint8(70 * label)
                mode = "L" if number % 3 == 2 else "RGB"
                Image.fromarray(pixels).convert(mode).save(place / f"{number} ü.{kind}")
    return folder


def saved(folder: Path, count: int = 45) -> Path:
    """Write a folder of the datasets library: pictures, texts, numbers and lists, a ClassLabel; train and test."""
    import datasets
    from PIL import Image

    datasets.disable_progress_bars()
    rng = draw(3)
    columns = {"image": datasets.Image(), "text": datasets.Value("string"), "age": datasets.Value("int64")}
    columns |= {"signal": datasets.List(datasets.Value("float32"), length=3), "site": datasets.Value("string")}
    columns |= {"label": datasets.ClassLabel(names=[*CLASSES, "never"])}
    parts = {}
    for part, rows in (("train", count), ("test", 12)):
        y = np.arange(rows) % 3
        values = {
            "image": [Image.fromarray(rng.integers(0, 255, (8, 8, 3)).astype(np.uint8)) for _ in range(rows)],
            "text": [f"{CLASSES[label]} of {row}" for row, label in enumerate(y)],
            "age": (20 + 10 * y + rng.integers(0, 9, rows)).tolist(),
            "signal": (y[:, None] + rng.normal(size=(rows, 3))).tolist(),
            "site": [SITES[row % 2] for row in range(rows)],
            "label": y.tolist(),
        }
        parts[part] = datasets.Dataset.from_dict(values, features=datasets.Features(columns))
    datasets.DatasetDict(parts).save_to_disk(str(folder))
    return folder
