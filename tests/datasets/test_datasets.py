"""Files in the official layouts are read to the byte; each way to be malformed ends in one line naming the file."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from fedkd_mpi.datasets import load
from fedkd_mpi.datasets.idx import read_idx
from fedkd_mpi.errors import UserError


def test_digits_are_those_of_scikit_learn_divided_once_for_every_seed():
    from sklearn.datasets import load_digits

    whole = load_digits()
    data = load("digits", None, seed=0)
    x = np.concatenate([data.train["x"], data.test["x"]])
    y = np.concatenate([data.train["y"], data.test["y"]])
    assert x.shape == (1797, 1, 8, 8)
    assert (x.dtype, y.dtype) == (np.uint8, np.int64)
    rows = np.column_stack([whole.images.reshape(1797, 64), whole.target])
    assert sorted(np.column_stack([x.reshape(1797, 64), y]).tolist()) == sorted(rows.tolist())
    assert len(data.test["y"]) == round(0.2 * 1797)
    share = np.bincount(data.test["y"]) / np.bincount(y)
    assert np.all(np.abs(share - 0.2) < 1 / 174)
    other = load("digits", None, seed=1)
    assert all(np.array_equal(data.test[key], other.test[key]) for key in ("x", "y"))
    assert data.meta["scale"] == 1 / 16


def idx_bytes(array: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return head + array.astype(np.uint8).tobytes()


def write_idx(folder: Path, zipped: bool = True) -> dict[str, np.ndarray]:
    """Write a small MNIST of 4 x 6 pixels, and return what it holds by file name."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    content = {}
    for part, count in (("train", 30), ("t10k", 12)):
        content[f"{part}-images-idx3-ubyte"] = rng.integers(0, 256, (count, 4, 6))
        content[f"{part}-labels-idx1-ubyte"] = np.arange(count) % 10
    for name, array in content.items():
        if zipped:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx_bytes(array)))
        else:
            (folder / name).write_bytes(idx_bytes(array))
    return content


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("name", "folder", "first"), [("mnist", "mnist", "0"), ("fashion_mnist", "fashion-mnist", "T-")]
)
def test_idx_is_read_as_written(tmp_path, name, folder, first, zipped):
    content = write_idx(tmp_path / folder, zipped)
    data = load(name, tmp_path, seed=0)
    for part, arrays in (("train", data.train), ("t10k", data.test)):
        assert np.array_equal(arrays["x"][:, 0], content[f"{part}-images-idx3-ubyte"])
        assert np.array_equal(arrays["y"], content[f"{part}-labels-idx1-ubyte"])
        assert (arrays["x"].dtype, arrays["y"].dtype) == (np.uint8, np.int64)
    assert len(data.meta["classes"]) == 10
    assert data.meta["classes"][0].startswith(first)


def test_meta_standardises_the_training_pixels_and_is_json(tmp_path):
    write_cifar10(tmp_path)
    data = load("cifar10", tmp_path, seed=0)
    meta = json.loads(json.dumps(data.meta))
    mean, std = (np.array(meta[key]).reshape(3, 1, 1) for key in ("mean", "std"))
    x = (data.train["x"] * meta["scale"] - mean) / std
    assert x.mean(axis=(0, 2, 3)) == pytest.approx([0, 0, 0], abs=1e-12)
    assert x.std(axis=(0, 2, 3)) == pytest.approx([1, 1, 1], abs=1e-12)


def test_constant_images_are_no_division_by_zero(tmp_path):
    write_idx(tmp_path / "mnist")
    (tmp_path / "mnist/train-images-idx3-ubyte").write_bytes(idx_bytes(np.full((30, 4, 6), 7)))
    assert load("mnist", tmp_path, seed=0).meta["std"] == [1.0]


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
GOOD = idx_bytes(np.zeros((30, 4, 6)))
ZIPPED = gzip.compress(np.random.default_rng(0).bytes(2000))

MALFORMED_IDX = {
    "not zero bytes": (IMAGES, b"\x89PNG" + GOOD[4:], "not an IDX file"),
    "gzip without .gz": (IMAGES, gzip.compress(GOOD), "not an IDX file"),
    "floats": (IMAGES, b"\0\0\x0d\x03" + GOOD[4:], "type 0x0d"),
    "labels for images": (IMAGES, idx_bytes(np.zeros(30)), "1 dimensions where 3"),
    "no bytes": (IMAGES, b"", "0 bytes are too few"),
    "half a header": (IMAGES, GOOD[:10], "10 bytes are too few"),
    "truncated": (IMAGES, GOOD[:-1], r"truncated: 735 bytes where its header \[30, 4, 6\] says 736"),
    "trailing byte": (IMAGES, GOOD + b"\0", "too long: 737 bytes"),
    "no images": (IMAGES, idx_bytes(np.zeros((0, 4, 6))), "empty"),
    "no pixels": (IMAGES, idx_bytes(np.zeros((30, 0, 6))), "empty"),
    "huge header": (IMAGES, b"\0\0\x08\x03" + b"\xff" * 12 + GOOD[16:], "truncated"),
    "fewer labels": (LABELS, idx_bytes(np.zeros(29)), f"29 labels for the 30 images of {IMAGES}"),
    "label 10": (LABELS, idx_bytes(np.r_[0:7, 10, np.zeros(22)]), r"record 7 has label 10, but labels are 0\.\.9"),
    "other size": ("t10k-images-idx3-ubyte", idx_bytes(np.zeros((12, 5, 6))), "4 x 6 pixels but test images of 5 x 6"),
    "not gzip": (f"{IMAGES}.gz", GOOD, "corrupt gzip"),
    "gzip cut short": (f"{IMAGES}.gz", ZIPPED[:-300], "corrupt gzip"),
    "gzip checksum": (f"{IMAGES}.gz", ZIPPED[:-8] + b"\0" * 8, "corrupt gzip"),
    "gzip stream": (f"{IMAGES}.gz", ZIPPED[:10] + b"\xff" * 50, "corrupt gzip"),
}


@pytest.mark.parametrize("case", MALFORMED_IDX)
def test_malformed_idx_is_one_line_naming_the_file(tmp_path, case):
    name, raw, message = MALFORMED_IDX[case]
    write_idx(tmp_path / "mnist", zipped=name.endswith(".gz"))
    (tmp_path / "mnist" / name).write_bytes(raw)
    with pytest.raises(UserError, match=message) as caught:
        load("mnist", tmp_path, seed=0)
    assert str(tmp_path / "mnist") in str(caught.value)
    assert case == "other size" or name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_idx_file_and_unreadable_path_are_named(tmp_path):
    write_idx(tmp_path / "mnist")
    missing = tmp_path / "mnist/t10k-labels-idx1-ubyte.gz"
    missing.unlink()
    with pytest.raises(UserError, match=f"{missing}: no such file"):
        load("mnist", tmp_path, seed=0)
    missing.mkdir()
    with pytest.raises(UserError, match=f"{missing}: cannot be read .Is a directory"):
        load("mnist", tmp_path, seed=0)


def records(count: int, *label_ranges: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    labels = [rng.integers(0, classes, (count, 1)) for classes in label_ranges]
    return np.concatenate([*labels, rng.integers(0, 256, (count, 3072))], axis=1).astype(np.uint8)


def write_cifar10(root: Path) -> dict[str, np.ndarray]:
    folder = root / "cifar-10-batches-bin"
    folder.mkdir()
    names = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]
    content = {name: records(3 + number, 10, seed=number) for number, name in enumerate(names)}
    for name, array in content.items():
        (folder / name).write_bytes(array.tobytes())
    return content


def test_cifar10_is_read_as_written_in_the_order_of_its_batches(tmp_path):
    content = write_cifar10(tmp_path)
    data = load("cifar10", tmp_path, seed=0)
    train = np.concatenate(list(content.values())[:5])
    assert data.train["x"].shape == (25, 3, 32, 32)
    assert np.array_equal(data.train["y"], train[:, 0])
    # One pixel by the format's own words: blue plane, row 5, column 7 of record 4.
    assert data.train["x"][4, 2, 5, 7] == train[4, 1 + 2 * 1024 + 5 * 32 + 7]
    assert np.array_equal(data.test["x"].reshape(8, -1), content["test_batch.bin"][:, 1:])
    assert data.meta["classes"][9] == "truck"


def test_cifar100_takes_the_fine_label(tmp_path):
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    train, test = records(20, 20, 100), records(5, 20, 100, seed=1)
    (folder / "train.bin").write_bytes(train.tobytes())
    (folder / "test.bin").write_bytes(test.tobytes())
    data = load("cifar100", tmp_path, seed=0)
    assert np.array_equal(data.train["y"], train[:, 1])
    assert np.array_equal(data.test["x"].reshape(5, -1), test[:, 2:])
    classes = data.meta["classes"]
    assert (len(set(classes)), classes[0], classes[99]) == (100, "apple", "worm")
    assert classes == sorted(classes)

    (folder / "fine_label_names.txt").write_text("\n".join(f"class{i}" for i in range(100)) + "\n")
    assert load("cifar100", tmp_path, seed=0).meta["classes"][42] == "class42"
    train[6, 0] = 20
    (folder / "train.bin").write_bytes(train.tobytes())
    with pytest.raises(UserError, match=r"train.bin: record 6 has label 20, but labels are 0\.\.19"):
        load("cifar100", tmp_path, seed=0)


ONE = records(4, 10)
WRONG_LABEL = ONE.copy()
WRONG_LABEL[2, 0] = 10
MALFORMED_CIFAR = {
    "cut": (
        "data_batch_3.bin",
        ONE.tobytes()[:-1],
        r"12291 bytes are not whole records of 3073 bytes: record 3 is cut",
    ),
    "empty": ("test_batch.bin", b"", "0 bytes are not whole records"),
    "label": ("data_batch_2.bin", WRONG_LABEL.tobytes(), r"record 2 has label 10, but labels are 0\.\.9"),
    "pickle": ("data_batch_1.bin", pickle.dumps({b"data": ONE, b"labels": [1]}, protocol=2), "cifar-10-binary.tar.gz"),
    "names": ("batches.meta.txt", b"cat\ndog\n", "2 class names where 10"),
    "binary names": ("batches.meta.txt", b"\xff\xfe\x80", "not a text file"),
}


@pytest.mark.parametrize("case", MALFORMED_CIFAR)
def test_malformed_cifar_is_one_line_naming_the_file(tmp_path, case):
    name, raw, message = MALFORMED_CIFAR[case]
    write_cifar10(tmp_path)
    path = tmp_path / "cifar-10-batches-bin" / name
    path.write_bytes(raw)
    with pytest.raises(UserError, match=message) as caught:
        load("cifar10", tmp_path, seed=0)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_missing_batches_are_all_named(tmp_path):
    write_cifar10(tmp_path)
    for name in ("data_batch_2.bin", "data_batch_5.bin"):
        (tmp_path / "cifar-10-batches-bin" / name).unlink()
    with pytest.raises(UserError, match=r"cifar-10-batches-bin: lacks data_batch_2.bin, data_batch_5.bin;"):
        load("cifar10", tmp_path, seed=0)


@pytest.mark.parametrize(
    ("name", "pickled", "archive"),
    [
        ("cifar10", "cifar-10-batches-py", "cifar-10-binary.tar.gz"),
        ("cifar100", "cifar-100-python", "cifar-100-binary.tar.gz"),
    ],
)
def test_pickled_cifar_is_refused_with_a_pointer_to_the_binary_one(tmp_path, name, pickled, archive):
    (tmp_path / pickled).mkdir()
    with pytest.raises(UserError, match=f"{pickled}: the pickled variant is not read.*{archive}"):
        load(name, tmp_path, seed=0)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "cifar100"])
def test_a_data_set_of_files_says_where_it_looks(tmp_path, name):
    with pytest.raises(UserError, match=r"set FEDKD_DATA or data\.root"):
        load(name, None, seed=0)
    with pytest.raises(UserError, match=f"{tmp_path}/[a-z0-9-]+: No such file or directory"):
        load(name, tmp_path, seed=0)


def test_unknown_name_gives_the_nearest_and_the_dotted_form():
    with pytest.raises(UserError, match=r"data.name=fashion-mnist .*fashion_mnist.*package\.module:"):
        load("fashion-mnist", None, seed=0)


def test_own_loader_by_dotted_path():
    assert load("own_data:good", None, seed=5).meta == {"seed": 5}
    for name, message in {
        "own_data:uneven": r"train arrays differ in length.*'x': 3, 'y': 2",
        "own_data:bare": "returned tuple instead of",
        "own_data:absent": "absent",
        "no_such_package.loaders:load": "no_such_package",
    }.items():
        with pytest.raises(UserError, match=message):
            load(name, None, seed=0)


def real_data(folder: str) -> Path:
    root = os.environ.get("FEDKD_DATA")
    if not root:
        pytest.skip("FEDKD_DATA is not set: real data are not tested")
    if not (Path(root) / folder).is_dir():
        pytest.skip(f"{root} has no {folder}/: real {folder} is not tested")
    return Path(root)


def test_real_fashion_mnist_has_its_published_statistics():
    data = load("fashion_mnist", real_data("fashion-mnist"), seed=0)
    assert (data.train["x"].shape, data.test["x"].shape) == ((60000, 1, 28, 28), (10000, 1, 28, 28))
    assert np.bincount(data.train["y"]).tolist() == [6000] * 10
    assert data.meta["mean"] == pytest.approx([0.2860], abs=1e-4)
    assert data.meta["std"] == pytest.approx([0.3530], abs=1e-4)


def test_real_cifar10_has_its_published_statistics():
    # The wide margin allows a folder that holds a subset of the records.
    data = load("cifar10", real_data("cifar-10-batches-bin"), seed=0)
    assert data.train["x"].shape[1:] == data.test["x"].shape[1:] == (3, 32, 32)
    assert data.meta["mean"] == pytest.approx([0.4914, 0.4822, 0.4465], abs=0.01)
    assert data.meta["std"] == pytest.approx([0.2470, 0.2435, 0.2616], abs=0.01)
    assert data.meta["classes"][:2] == ["airplane", "automobile"]


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("shape", [(2**32 - 1,) * 3, (10_000,) * 3])
def test_an_idx_header_that_asks_for_more_than_there_is_allocates_nothing(tmp_path: Path, shape, suffix):
    raw = b"\0\0\x08\x03" + np.array(shape, ">u4").tobytes() + bytes(100)
    path = tmp_path / f"train-images-idx3-ubyte{suffix}"
    path.write_bytes(gzip.compress(raw) if suffix else raw)
    tracemalloc.start()
    with pytest.raises(UserError, match="truncated: 116 bytes where"):
        read_idx(path, 3)
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()


def test_a_gzip_bomb_is_read_no_further_than_its_header_says(tmp_path: Path):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(b"\0\0\x08\x03" + np.array((2, 3, 3), ">u4").tobytes() + bytes(2**26)))
    tracemalloc.start()
    with pytest.raises(UserError, match="too long"):
        read_idx(path, 3)
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "train-images-idx3-ubyte")
    with pytest.raises(UserError, match="neither file nor folder"):
        read_idx(tmp_path / "train-images-idx3-ubyte", 3)


def test_root_may_have_variables_and_be_a_file(tmp_path: Path, monkeypatch):
    write_idx(tmp_path / "mnist")
    monkeypatch.setenv("PLACE_OF_DATA", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    for root in ("$PLACE_OF_DATA", "~"):
        assert len(load("mnist", Path(root), 0).train["x"])
    (tmp_path / "file").write_bytes(b"")
    for root, words in (  # each named in one line
        ("file", "Not a directory"),
        ("none", "No such file or directory"),
        ("~nobody-of-that-name", "No such file or directory"),
    ):
        with pytest.raises(UserError, match=f"{words}; data.name=mnist reads it") as caught:
            load("mnist", tmp_path / root if root[0] != "~" else Path(root), 0)
        assert "\n" not in str(caught.value)
