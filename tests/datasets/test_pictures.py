"""Tiny-ImageNet and Flowers-102 in their official layouts: read to the pixel, or refused in a line naming the file."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from fedkd_mpi.datasets import load
from fedkd_mpi.errors import UserError

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed (extra images)")


def write(path: Path, pixels: np.ndarray) -> None:
    """Write [H, W] or [H, W, 3] pixels as a JPEG file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path, "JPEG", quality=95)


def smooth(seed: int, height: int, width: int) -> np.ndarray:
    """A colour gradient, which JPEG keeps to a grey level or two."""
    rng = np.random.default_rng(seed)
    corner, down, right = rng.uniform(110, 150, 3), rng.uniform(-50, 50, 3), rng.uniform(-50, 50, 3)
    rows, columns = np.linspace(0, 1, height)[:, None, None], np.linspace(0, 1, width)[None, :, None]
    return np.round(corner + down * rows + right * columns)


def write_tiny(root: Path) -> dict[str, np.ndarray]:
    """Two classes of three training and two validation pictures; the last training one is grey."""
    folder, content = root / "tiny-imagenet-200", {}
    wnids = ["n02124075", "n01443537"]
    for label, wnid in enumerate(wnids):
        for index in range(3):
            pixels = smooth(10 * label + index, 64, 64)
            content[f"train/{wnid}/images/{wnid}_{index}.JPEG"] = pixels[:, :, 0] if label and index == 2 else pixels
        (folder / "train" / wnid).mkdir(parents=True)
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t10\t63\t58\n")
    for index in range(4):
        content[f"val/images/val_{index}.JPEG"] = smooth(50 + index, 64, 64)
    for name, pixels in content.items():
        write(folder / name, pixels)
    (folder / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in wnids))
    lines = [f"val_{index}.JPEG\t{wnids[index // 2]}\t0\t32\t44\t62\n" for index in (3, 0, 1, 2)]
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    return content


def test_tiny_imagenet_is_read_as_it_is_unpacked(tmp_path: Path):
    content = write_tiny(tmp_path)
    data = load("tiny_imagenet", tmp_path, 0)
    assert data.meta["classes"] == ["n02124075", "n01443537"]
    assert data.train["y"].tolist() == [0, 0, 0, 1, 1, 1]
    assert data.test["y"].tolist() == [1, 0, 0, 1]  # in the order of the annotations
    assert (data.train["x"].shape, data.train["x"].dtype) == ((6, 3, 64, 64), np.uint8)
    train, test = ([name for name in content if name.startswith(part)] for part in ("train", "val"))
    for name, pixels in zip(
        [*train, *(test[i] for i in (3, 0, 1, 2))], [*data.train["x"], *data.test["x"]], strict=True
    ):
        written = content[name] if content[name].ndim == 3 else np.stack([content[name]] * 3, 2)
        assert np.abs(pixels.transpose(1, 2, 0) - written).max() < 8
    grey = data.train["x"][5]
    assert np.array_equal(grey[0], grey[1])
    assert np.array_equal(grey[0], grey[2])


def jpeg(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(stream, "JPEG")
    return stream.getvalue()


FIRST = "train/n02124075/images/n02124075_0.JPEG"
LIST = "val/val_annotations.txt"
MALFORMED_TINY = {
    "cut": (FIRST, jpeg(smooth(0, 64, 64))[:400], "not a whole picture"),
    "text": (FIRST, b"<html>404</html>", "not a whole picture"),
    "empty picture": (FIRST, b"", "not a whole picture"),
    "size": (FIRST, jpeg(smooth(0, 32, 48)), "48 x 32 pixels where 64 x 64 are due"),
    "class twice": ("wnids.txt", b"n02124075\nn02124075\n", "line 2 is 'n02124075'"),
    "blank class": ("wnids.txt", b"n02124075\n\nn01443537\n", "line 2 is ''"),
    "path": ("wnids.txt", b"../secret\n", "line 1 is '../secret'"),
    "no class": ("wnids.txt", b"", "empty"),
    "not text": ("wnids.txt", b"n02124075\n\xff\xfe\n", "line 2 is not UTF-8"),
    "unnamed class": ("wnids.txt", b"n02124075\n", "a class that wnids.txt does not name"),
    "class without pictures": ("wnids.txt", b"n02124075\nn01443537\nn1\n", "train/n1/images: No such file"),
    "fields": (LIST, b"val_0.JPEG\tn02124075\t0\t1\t2\t3\nval_1.JPEG n02124075\n", "line 2 has 1 fields"),
    "label": (LIST, b"val_0.JPEG\tn0\t0\t32\t44\t62\n", "line 1: class n0 is not in wnids.txt"),
    "twice": (LIST, b"val_0.JPEG\tn02124075\t0\t1\t2\t3\n" * 2, "line 2: 'val_0.JPEG' is not a file"),
    "outside": (LIST, b"../../x\tn02124075\t0\t1\t2\t3\n", "line 1: '../../x' is not a file"),
    "unlabelled": (LIST, b"val_0.JPEG\tn02124075\t0\t1\t2\t3\n", "val_1.JPEG: no line of val_annotations.txt"),
    "empty list": (LIST, b"", "empty"),
}


@pytest.mark.parametrize("case", MALFORMED_TINY)
def test_malformed_tiny_imagenet_is_one_line_naming_the_file(tmp_path: Path, case: str):
    name, raw, words = MALFORMED_TINY[case]
    write_tiny(tmp_path)
    (tmp_path / "tiny-imagenet-200" / name).write_bytes(raw)
    with pytest.raises(UserError) as caught:
        load("tiny_imagenet", tmp_path, 0)
    text = str(caught.value)
    assert words in text
    assert str(tmp_path / "tiny-imagenet-200") in text
    assert case in ("unnamed class", "class without pictures", "unlabelled") or Path(name).name in text
    assert "\n" not in text


@pytest.mark.parametrize("name", ["wnids.txt", LIST, "val/images/val_2.JPEG", "train", "val"])
def test_a_missing_part_of_tiny_imagenet_is_named(tmp_path: Path, name: str):
    write_tiny(tmp_path)
    path = tmp_path / "tiny-imagenet-200" / name
    path.rename(tmp_path / "gone")
    with pytest.raises(UserError, match=f"{path}.*[Nn]o such file"):
        load("tiny_imagenet", tmp_path, 0)


def write_flowers(root: Path) -> tuple[Path, np.ndarray, dict[str, np.ndarray]]:
    """Nine flowers, the odd ones upright and the even ones lying."""
    folder = root / "flowers-102"
    labels = np.array([[102, 1, 2, 3, 77, 5, 6, 7, 8]], np.uint8)
    splits = {"trnid": [[2, 3]], "valid": [[5, 1]], "tstid": [[9, 4, 6, 7, 8]]}
    for number in range(1, 10):
        write(folder / "jpg" / f"image_{number:05d}.jpg", smooth(number, *((60, 90) if number % 2 else (90, 60))))
    savemat(folder / "imagelabels.mat", {"labels": labels})
    savemat(folder / "setid.mat", {name: np.array(ids, np.uint16) for name, ids in splits.items()})
    return folder, labels, splits


def test_flowers_are_the_middle_squares_of_the_official_splits(tmp_path: Path):
    _, labels, splits = write_flowers(tmp_path)
    data = load("flowers102", tmp_path, 0, {"size": 20})
    train, test = [2, 3, 5, 1], splits["tstid"][0]
    assert len(data.meta["classes"]) == 102
    for part, numbers in ((data.train, train), (data.test, test)):
        assert part["y"].tolist() == [labels[0, number - 1] - 1 for number in numbers]
        assert part["x"].shape == (len(numbers), 3, 20, 20)
        for pixels, number in zip(part["x"], numbers, strict=True):
            whole = smooth(number, *((60, 90) if number % 2 else (90, 60)))
            square = whole[:, 15:75] if number % 2 else whole[15:75]
            expected = square.reshape(20, 3, 20, 3, 3).mean(axis=(1, 3))  # a gradient: any good scaling is the mean
            assert np.abs(pixels.transpose(1, 2, 0) - expected)[1:-1, 1:-1].max() < 4


def mat(**variables: object) -> bytes:
    stream = io.BytesIO()
    savemat(stream, variables)
    return stream.getvalue()


IDS = {"trnid": [[1, 2]], "valid": [[3]], "tstid": [[4, 5]]}
WHOLE = mat(**IDS)
MALFORMED_FLOWERS = {
    "cut": ("setid.mat", WHOLE[:200], "not a whole MATLAB file"),
    "header alone": ("setid.mat", WHOLE[:128], "lacks a vector `trnid`"),
    "empty": ("imagelabels.mat", b"", "not a whole MATLAB file"),
    "text": ("imagelabels.mat", b"labels = 1 2 3\n" * 20, "not a whole MATLAB file"),
    "hdf5": ("imagelabels.mat", b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM" + b"\x89HDF\r\n\x1a\n", "not a whole"),
    "split missing": ("setid.mat", mat(trnid=[[1, 2]], tstid=[[3]]), "lacks a vector `valid`"),
    "strings": ("imagelabels.mat", mat(labels=["rose"]), "lacks a vector `labels`"),
    "fractions": ("imagelabels.mat", mat(labels=[[1.5, 2]]), "lacks a vector `labels`"),
    "matrix": ("imagelabels.mat", mat(labels=[[1, 2], [3, 4]]), "lacks a vector `labels`"),
    "label 103": ("imagelabels.mat", mat(labels=[[1, 103, 3, 4, 5, 6, 7, 8, 9]]), "picture 2 has label 103"),
    "label 0": ("imagelabels.mat", mat(labels=[[1, 2, 0, 4, 5, 6, 7, 8, 9]]), "picture 3 has label 0"),
    "too high": ("setid.mat", mat(**{**IDS, "tstid": [[4, 10]]}), "tstid names picture 10"),
    "twice": ("setid.mat", mat(**{**IDS, "valid": [[2]]}), "picture 2 is in the splits more than once"),
    "picture": ("jpg/image_00004.jpg", jpeg(smooth(0, 60, 60))[:300], "not a whole picture"),
}


@pytest.mark.parametrize("case", MALFORMED_FLOWERS)
def test_malformed_flowers_are_one_line_naming_the_file(tmp_path: Path, case: str):
    name, raw, words = MALFORMED_FLOWERS[case]
    folder, *_ = write_flowers(tmp_path)
    (folder / name).write_bytes(raw)
    with pytest.raises(UserError) as caught:
        load("flowers102", tmp_path, 0, {"size": 8})
    assert str(caught.value).startswith(f"{folder / name}: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_mat_file_cut_or_altered_anywhere_is_a_user_error_or_read(tmp_path: Path):
    folder, *_ = write_flowers(tmp_path)
    path, rng, refused = folder / "setid.mat", np.random.default_rng(0), 0
    for _ in range(150):
        raw = bytearray(WHOLE)
        raw[rng.integers(len(raw))] = rng.integers(256)
        path.write_bytes(bytes(raw[: rng.integers(len(raw) // 2, len(raw) + 1)]))
        try:
            load("flowers102", tmp_path, 0, {"size": 4})
        except UserError as error:
            refused += str(path) in str(error)
    assert refused > 100


@pytest.mark.parametrize("name", ["imagelabels.mat", "setid.mat", "jpg/image_00007.jpg"])
def test_a_missing_part_of_flowers_is_named(tmp_path: Path, name: str):
    folder, *_ = write_flowers(tmp_path)
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"{folder / name}: .*[Nn]o such file"):
        load("flowers102", tmp_path, 0, {"size": 8})


def test_what_desktops_leave_is_no_class_and_no_picture(tmp_path: Path):
    write_tiny(tmp_path)
    before = load("tiny_imagenet", tmp_path, 0)
    folder = tmp_path / "tiny-imagenet-200"
    places = [folder / "train", folder / "train/n02124075/images", folder / "val/images"]
    for place in places:
        for name in (".DS_Store", "._n02124075_0.JPEG", "Thumbs.db", "desktop.ini"):
            (place / name).write_bytes(b"\0")
        for name in (".ipynb_checkpoints", "__MACOSX"):
            (place / name).mkdir()
    after = load("tiny_imagenet", tmp_path, 0)
    assert np.array_equal(before.train["x"], after.train["x"])
    assert np.array_equal(before.test["x"], after.test["x"])
