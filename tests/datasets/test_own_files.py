"""A user's own files are read as pandas, NumPy, Pillow and the datasets library read them; what is odd is named."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import own_files
import pytest
from own_files import CLASSES, SITES

from fedkd_mpi import datasets, tasks
from fedkd_mpi.common import machine
from fedkd_mpi.errors import UserError


def load(name: str, path: Path, **keys: Any) -> datasets.Dataset:
    return datasets.load(name, None, 0, datasets.check(name, {"path": str(path), **keys}))


def together(dataset: datasets.Dataset, key: str) -> np.ndarray:
    """Return an array of all samples, in the order of their ids."""
    both = [np.concatenate([part[name] for part in (dataset.train, dataset.test)]) for name in (key, "id")]
    return both[0][np.argsort(both[1], kind="stable")]


def test_a_table_is_read_as_pandas_reads_it(tmp_path: Path):
    pandas = pytest.importorskip("pandas")
    path = own_files.table(tmp_path / "t.csv", 300)
    keys = {"label": "kind", "client": "site", "id": "name", "features": ["a", 'b, "c"'], "categorical": ["colour"]}
    found = load("csv", path, **keys)
    frame = pandas.read_csv(path, converters={"a": float, 'b, "c"': float})
    due = np.column_stack([frame[["a", 'b, "c"']], frame.colour == "blue", frame.colour == "red"]).astype(np.float32)
    assert together(found, "x").tobytes() == due.tobytes()
    assert found.meta["features"] == ["a", 'b, "c"', "colour=blue", "colour=red"]
    assert [found.meta["classes"][label] for label in together(found, "y")] == frame.kind.tolist()
    assert [found.meta["clients"][owner] for owner in together(found, "group")] == frame.site.tolist()
    assert found.meta["classes"] == sorted(CLASSES)
    rows = frame.name.isin([name.decode() for name in found.train["id"]])
    assert np.allclose(found.meta["mean"], due[rows].astype(np.float64).mean(0), rtol=1e-12)
    assert np.allclose(found.meta["std"], due[rows].astype(np.float64).std(0), rtol=1e-12)
    shares = np.bincount(found.test["y"]) / np.bincount(together(found, "y"))
    assert shares == pytest.approx([0.2] * 3, abs=0.01)


def test_a_table_by_any_separator_compressed_or_not_is_the_same(tmp_path: Path):
    one = load("csv", own_files.table(tmp_path / "t.csv"), label="kind", features=["a"], id="name")
    others = [own_files.table(tmp_path / "t.tsv", separator="\t"), own_files.table(tmp_path / "s.csv", separator=";")]
    (tmp_path / "z.csv.gz").write_bytes(gzip.compress((tmp_path / "t.csv").read_bytes()))
    (tmp_path / "bom.csv").write_bytes(
        "\ufeff".encode() + (tmp_path / "t.csv").read_bytes().replace(b"\r\n", b"\r\n\r\n")
    )
    for path in [*others, tmp_path / "z.csv.gz", tmp_path / "bom.csv"]:
        keys = {"separator": ";"} if path.name == "s.csv" else {}
        other = load("csv", path, label="kind", features=["a"], id="name", **keys)
        assert other.meta == one.meta
        assert all(np.array_equal(one.train[key], other.train[key]) for key in one.train)


def test_rows_are_where_the_split_column_says(tmp_path: Path):
    path = tmp_path / "t.csv"
    path.write_text("x,label,part\n1,10,train\n2,9,Train\n3,10, test\n4,9,train\n5,10,train\n")
    found = load("csv", path, split="part", standardise=False)
    assert found.train["x"].tolist() == [[1], [2], [4], [5]]
    assert (found.test["x"].tolist(), found.test["y"].tolist()) == ([[3]], [1])
    assert found.meta["classes"] == ["9", "10"]  # in the order of the numbers
    assert (found.meta["mean"], found.meta["std"]) == ([0.0], [1.0])


def test_arrays_are_taken_as_they_are(tmp_path: Path):
    path = own_files.arrays(tmp_path / "a.npz", id=np.array([f"s{row:02d}" for row in range(60)]))
    found = load("npz", path)
    with np.load(path) as file:
        assert np.array_equal(together(found, "x"), file["x"][:, None])
        assert [int(found.meta["classes"][label]) for label in together(found, "y")] == file["y"].tolist()
        assert np.array_equal(together(found, "group") * 5, file["client"])
    assert found.meta["classes"] == ["0", "3", "7"]
    pixels = found.train["x"] / 255
    assert (found.meta["mean"], found.meta["std"]) == (pytest.approx([pixels.mean()]), pytest.approx([pixels.std()]))
    x = np.random.default_rng(0).normal(3, 2, (30, 4, 4, 3)).astype(">f8")
    y = np.array(["b", "a", "c"] * 10)
    names = {"x": "pictures", "y": "names", "x_test": "later", "y_test": "later_names"}
    np.savez(tmp_path / "b.npz", pictures=x, names=y[:, None], later=x[:6], later_names=y[:6])
    found = load("npz", tmp_path / "b.npz", channels_last=True, **names)
    assert np.array_equal(found.train["x"], x.transpose(0, 3, 1, 2).astype(np.float32))
    assert found.test["y"].tolist() == [1, 0, 2, 1, 0, 2]
    assert found.meta["std"] == pytest.approx(x.astype(np.float32).std((0, 1, 2), dtype=np.float64))


@pytest.mark.parametrize("levels", [False, True])
def test_pictures_are_read_as_pillow_reads_them(tmp_path: Path, levels: bool):
    image = pytest.importorskip("PIL.Image")
    folder = own_files.pictures(tmp_path / "pics", levels=levels)
    for stray in (".DS_Store", f"{'train/' if levels else ''}{CLASSES[0]}/Thumbs.db"):
        (folder / stray).write_bytes(b"?")
    for grey in (False, True):
        found = load("folder", folder, size=6, grey=grey)
        assert found.meta["classes"] == sorted(CLASSES)
        assert sum(map(len, (found.train["y"], found.test["y"]))) == (48 if levels else 24)
        for part in (found.train, found.test):
            for name, x, y in zip(part["id"], part["x"], part["y"], strict=True):
                path = folder / name.decode()
                assert path.parent.name == found.meta["classes"][y]
                with image.open(path) as picture:
                    shape = min(picture.size)
                    left, top = ((side - shape) // 2 for side in picture.size)
                    square = picture.convert("L" if grey else "RGB").resize(
                        (6, 6), image.Resampling.BILINEAR, box=(left, top, left + shape, top + shape)
                    )
                assert np.array_equal(x, np.atleast_3d(np.asarray(square)).transpose(2, 0, 1))
        if levels:
            assert all(name.startswith(b"test/") for name in found.test["id"])


def test_a_saved_folder_is_read_as_its_library_reads_it(tmp_path: Path):
    library = pytest.importorskip("datasets")
    folder = own_files.saved(tmp_path / "saved")
    rows = {part: library.load_from_disk(str(folder))[part] for part in ("train", "test")}
    found = load("hf", folder, image="image", client="site")
    assert found.meta["classes"] == list(CLASSES)  # in the order of the ClassLabel, without the unused one
    assert found.meta["clients"] == sorted(SITES[:2])
    for part, arrays in (("train", found.train), ("test", found.test)):
        pixels = [np.asarray(picture).transpose(2, 0, 1) for picture in rows[part]["image"]]
        assert np.array_equal(arrays["x"], np.stack(pixels))
        assert arrays["y"].tolist() == list(rows[part]["label"])
    found = load("hf", folder, features=["age", "signal"])
    due = np.column_stack([rows["train"]["age"][:], rows["train"]["signal"][:]]).astype(np.float32)
    assert np.array_equal(found.train["x"], due)
    assert found.meta["features"] == ["age", "signal[0]", "signal[1]", "signal[2]"]


def test_texts_of_a_table_and_of_a_saved_folder_become_tokens(tmp_path: Path):
    pytest.importorskip("tokenizers")
    keys = {"vocabulary": 300, "length": 12}
    found = load("csv", own_files.table(tmp_path / "t.csv"), label="kind", text="note", **keys)
    tasks.check_data("text_classification", "csv", found.train, found.test, found.meta)
    assert (found.train["ids"][:, 2] != found.meta["pad"]).all()
    pytest.importorskip("datasets")
    found = load("hf", own_files.saved(tmp_path / "saved"), text="text", **keys)
    tasks.check_data("text_classification", "hf", found.train, found.test, found.meta)


CSV = "x,site,label\n" + "".join(f"{row},{'pq'[row % 2]},{'ab'[row // 2 % 2]}\n" for row in range(20))
TABLES = {
    "no number": (CSV.replace("\n7,", "\nseven,"), {"features": ["x"]}, "line 9: column 'x' has 'seven'"),
    "empty cell": (CSV.replace("\n7,", "\n,"), {"features": ["x"]}, "line 9: column 'x' has ''"),
    "nan": (CSV.replace("\n7,", "\nnan,"), {"features": ["x"]}, "line 9: column 'x' has 'nan'"),
    "too large": (CSV.replace("\n7,", "\n1e60,"), {"features": ["x"]}, "line 9: column 'x' has '1e60'"),
    "text": (CSV, {}, "line 2: column 'site' has 'p', no finite number.*data.categorical"),
    "ragged": (CSV.replace("\n7,", "\n7,8,"), {}, "line 9: 4 fields where the header has 3"),
    "short": (CSV.replace("\n7,q", "\n7"), {}, "line 9: 2 fields"),
    "twice": (CSV.replace("site", "x", 1), {}, "line 1: column 'x' is named twice"),
    "no column": (CSV, {"label": "kind"}, "data.label=kind, but the columns are x, site, label"),
    "no label": (CSV.replace("\n7,q,b", "\n7,q, "), {"features": ["x"]}, "line 9: the label is empty"),
    "one class": (CSV.replace(",b\n", ",a\n"), {"features": ["x"]}, "all 20 samples are of class 'a'"),
    "untrained": (
        "x,label,split\n1,a,train\n2,b,train\n3,c,test\n",
        {"split": "split"},
        "line 4: class 'c' has no sample",
    ),
    "no classes": ("x,label\n" + "".join(f"{n},{n}\n" for n in range(30)), {}, "each of the 30 samples is a class of"),
    "odd split": (CSV, {"split": "site", "features": ["x"]}, "line 2: split 'p', expected train or test"),
    "id twice": (CSV, {"id": "site", "features": ["x"]}, "line 4: id 'p' is that of a sample before it"),
    "no row": ("x,label\n", {}, "no row below the header"),
    "empty": ("", {}, "empty, where the first line"),
    "quote": (CSV.replace("\n7,", '\n"7,'), {}, "unexpected end of data"),
}


@pytest.mark.parametrize("case", TABLES)
def test_what_is_odd_in_a_table_is_named(tmp_path: Path, case: str):
    text, keys, message = TABLES[case]
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load("csv", path, **keys)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_feature_that_single_precision_cannot_hold_is_named(tmp_path: Path):
    path = tmp_path / "t.csv"
    path.write_text("when,same,label\n" + "".join(f"{1.6e9 + row},5e9,{row % 2}\n" for row in range(40)))
    with pytest.raises(UserError, match="feature 'when' goes from 1600000000 to 1600000039"):
        load("csv", path)
    found = load("csv", path, features=["same"])  # a constant is none the worse for it
    assert (found.meta["mean"], found.meta["std"]) == ([5e9], [1.0])
    path.write_bytes(b"x,label\n1,\xff\n")
    with pytest.raises(UserError, match="not UTF-8 text"):
        load("csv", path)


def shrink(path: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    """Change the bytes of an array in an .npz file."""
    with zipfile.ZipFile(path) as file:
        content = {item: file.read(item) for item in file.namelist()}
    with zipfile.ZipFile(path, "w") as file:
        for item, data in content.items():
            file.writestr(item, change(data) if item == f"{name}.npy" else data)


X, Y = np.zeros((6, 4), np.float32), np.arange(6) % 2
ARRAYS: dict[str, tuple[dict[str, Any], str]] = {
    "pickle": ({"x": X, "y": np.array([b"a", None] * 3, object)}, "'y' holds Python objects"),
    "no y": ({"x": X}, "no array 'y'; it has x"),
    "lengths": ({"x": X, "y": Y[:5]}, "'x' has 6 samples, 'y' has 5"),
    "one-hot": ({"x": X, "y": np.eye(6)}, r"expected a number or text for each sample: of one-hot rows, .argmax\(1\)"),
    "float classes": ({"x": X, "y": Y + 0.5}, r"y\[0\]: label 0.5, expected a whole number"),
    "nan": ({"x": np.where(np.arange(4) == 2, np.nan, X), "y": Y}, r"x\[0, 2\] is nan"),
    "complex": ({"x": X + 1j, "y": Y}, "'x' is complex"),
    "flat": ({"x": X[:, 0], "y": Y}, r"\[n, features\]"),
    "channels": ({"x": np.zeros((6, 8, 8, 3), np.uint8), "y": Y}, "say data.channels_last=true, or false"),
    "client": ({"x": X, "y": Y, "client": Y[:3]}, "'client' has 3 entries"),
    "split": ({"x": X, "y": Y, "split": np.array(["train", "dev"] * 3)}, r"y\[1\]: split 'dev'"),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_what_is_odd_in_arrays_is_named(tmp_path: Path, case: str):
    content, message = ARRAYS[case]
    path = tmp_path / "a.npz"
    np.savez(path, **content)
    with pytest.raises(UserError, match=message) as caught:
        load("npz", path)
    assert "\n" not in str(caught.value)


def test_a_header_that_asks_for_more_than_there_is_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.npz"
    np.savez(path, x=X, y=Y)
    shrink(path, "x", lambda data: data.replace(b"(6, 4)", b"(6, 4000000000000)").replace(b" " * 12, b"", 1))
    with pytest.raises(UserError, match=r"array 'x' is damaged .*asks for 96000000000000 bytes, there are 96"):
        load("npz", path)
    shrink(path, "x", lambda data: pickle.dumps(print))
    with pytest.raises(UserError, match="array 'x' is damaged"):
        load("npz", path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"not a whole .npz file"):
        load("npz", path)
    np.savez(path, x=X, y=Y)
    monkeypatch.setattr(machine, "memory", lambda: 100)
    with pytest.raises(UserError, match="x, y: that is 288 B of memory, more than this machine's 100 B"):
        load("npz", path)
    csv = own_files.table(tmp_path / "t.csv")
    with pytest.raises(UserError, match="90 rows of 2 features: that is 720 B of memory"):
        load("csv", csv, label="kind", features=["a", 'b, "c"'])


def picture(folder: Path, name: str, mode: str, size: tuple[int, int] = (8, 8)) -> None:
    from PIL import Image

    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size).save(folder / name)


def cut(folder: Path) -> None:
    path = next(folder.glob("zebra/*.jpg"))
    path.write_bytes(path.read_bytes()[:200])


FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (cut, "zebra/1 ü.jpg: not a whole picture"),
    "text": (lambda f: (f / "zebra/notes.txt").write_text("?"), "zebra/notes.txt: not a whole picture"),
    "16 bits": (lambda f: picture(f, "zebra/x.png", "I;16"), "zebra/x.png: pixels of more than 8 bits"),
    "pipe": (lambda f: os.mkfifo(f / "zebra/x.png"), "zebra/x.png: not a file"),
    "empty class": (lambda f: (f / "dog").mkdir(), "dog: a class without pictures"),
    "beside": (lambda f: (f / "list.csv").write_text("?"), "list.csv: stands beside the folders"),
    "levels mixed": (lambda f: picture(f, "train/zebra/x.png", "RGB"), "'zebra' stands beside 'train'|stands beside"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_what_is_odd_in_a_folder_is_named(tmp_path: Path, case: str):
    pytest.importorskip("PIL")
    change, message = FOLDERS[case]
    folder = own_files.pictures(tmp_path / "pics")
    change(folder)
    with pytest.raises(UserError, match=message) as caught:
        load("folder", folder, size=6)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pictures_of_several_sizes_want_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("PIL")
    with pytest.raises(UserError, match=r"12 x 10 pixels where 12 x 9 are due: data.size scales all"):
        load("folder", own_files.pictures(tmp_path / "pics"))
    for number in range(4):
        picture(tmp_path / "alike", f"{'ab'[number % 2]}/{number}.png", "RGBA", (7, 5))
    assert load("folder", tmp_path / "alike").train["x"].shape[1:] == (3, 5, 7)
    with monkeypatch.context() as small:
        small.setattr(machine, "memory", lambda: 400)
        with pytest.raises(UserError, match="4 pictures of 7 x 5 pixels: that is 420 B of memory"):
            load("folder", tmp_path / "alike")
    with pytest.raises(UserError, match=r"data.path=.*none: no such file or folder"):
        load("folder", tmp_path / "none")


def test_a_damaged_saved_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("datasets")
    folder = own_files.saved(tmp_path / "saved")
    with pytest.raises(UserError, match=r"data.image=photo, but the columns are image, text"):
        load("hf", folder, image="photo")
    with pytest.raises(UserError, match="column 'text' holds"):
        load("hf", folder, features=["text"])
    (arrow,) = (folder / "train").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:500])
    with pytest.raises(UserError, match=r"not a folder of datasets.save_to_disk") as caught:
        load("hf", folder, image="image")
    assert "\n" not in str(caught.value)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": ["../train"]}))
    with pytest.raises(UserError, match=r"not a folder of datasets.save_to_disk|has no split train"):
        load("hf", folder, image="image")
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(UserError, match=r"needs the datasets library .*pip install 'fedkd-mpi\[hf\]'"):
        load("hf", folder, image="image")


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("csv", {"path": "t.csv", "text": "a", "features": ["b"]}, "give one of text"),
        ("csv", {"path": "t.csv", "labels": "a"}, "unknown key data.labels; did you mean data.label?"),
        ("npz", {"path": "a.npz", "x_test": "b"}, "give both of x_test and y_test"),
        ("hf", {"path": "f", "image": "a", "text": "b"}, "give one of image, text and features"),
        ("folder", {}, "data.path is missing"),
        ("folder", {"path": "f", "test_fraction": 1.0}, "less than 1"),
    ],
)
def test_keys_are_checked_before_a_file_is_opened(name: str, keys: dict[str, Any], message: str):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserError, match=message.replace("?", r"\?")):
            datasets.check(name, keys)


def test_networks_see_rows_as_scikit_learn_standardises_them(tmp_path: Path):
    from sklearn.preprocessing import StandardScaler

    found = load("csv", own_files.table(tmp_path / "t.csv"), label="kind", features=["a", 'b, "c"'])
    tasks.check_data("tabular", "csv", found.train, found.test, found.meta)
    task = tasks.find("tabular")(found.meta, found.train)
    scaler = StandardScaler().fit(found.train["x"].astype(np.float64))
    for part in (found.train, found.test):
        batch = task.prepare(part, np.arange(len(part["y"])), "cpu")
        assert np.allclose(batch["x"].numpy(), scaler.transform(part["x"]), atol=1e-5)
        assert batch["y"].tolist() == part["y"].tolist()
    with pytest.raises(UserError, match=r"expected \[n, features\] alike in train and test"):
        tasks.check_data("tabular", "own", {**found.train, "x": found.train["x"][:, :1]}, found.test, found.meta)
