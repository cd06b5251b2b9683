"""The binary records of CIFAR-10 and CIFAR-100.

A record is its label bytes (CIFAR-10: one; CIFAR-100: coarse, fine) and 3072 pixel bytes: the red, green and blue
planes of 32x32, in row order (Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedkd_mpi.datasets import Dataset, check_labels, data_folder, expanded, image_dataset, read_file, stand_in
from fedkd_mpi.datasets.folders import FOLDERS
from fedkd_mpi.errors import UserError

SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32
PICKLE_START = b"\x80"

CLASSES_10 = "airplane automobile bird cat deer dog frog horse ship truck"
CLASSES_100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
willow_tree wolf woman worm
"""


@dataclass(frozen=True)
class Layout:
    """The files of one CIFAR: its folder, the folder of the pickled variant, archive, files, and ranges of labels."""

    name: str
    pickled: str
    archive: str
    train: tuple[str, ...]
    test: str
    names: str
    default_names: str
    label_ranges: tuple[int, ...]

    @property
    def folder(self) -> str:
        """The folder of the binary files."""
        return FOLDERS[self.name][0]


CIFAR10 = Layout(
    name="cifar10",
    pickled="cifar-10-batches-py",
    archive="cifar-10-binary.tar.gz",
    train=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    test="test_batch.bin",
    names="batches.meta.txt",
    default_names=CLASSES_10,
    label_ranges=(10,),
)
CIFAR100 = Layout(
    name="cifar100",
    pickled="cifar-100-python",
    archive="cifar-100-binary.tar.gz",
    train=("train.bin",),
    test="test.bin",
    names="fine_label_names.txt",
    default_names=CLASSES_100,
    label_ranges=(20, 100),
)


def load_cifar10(root: Path | None, seed: int) -> Dataset:
    """Return CIFAR-10 from root/cifar-10-batches-bin, whose files may be shorter than official; raises UserError."""
    return _load(root, CIFAR10)


def load_cifar100(root: Path | None, seed: int) -> Dataset:
    """Return CIFAR-100, with its 100 fine labels, from root/cifar-100-binary; raises UserError."""
    return _load(root, CIFAR100)


def stand_in_cifar10(root: Path | None, seed: int) -> Dataset:
    """Return 50,000 + 10,000 images of the official shape."""
    return stand_in(50_000, 10_000, SHAPE, CLASSES_10.split())


def stand_in_cifar100(root: Path | None, seed: int) -> Dataset:
    """Return 50,000 + 10,000 images of the official shape."""
    return stand_in(50_000, 10_000, SHAPE, CLASSES_100.split())


def _load(root: Path | None, layout: Layout) -> Dataset:
    if root is not None:
        pickled = expanded(root) / layout.pickled
        if pickled.is_dir() and not (expanded(root) / layout.folder).is_dir():
            raise _pickled(pickled, layout)
    folder = data_folder(root, layout.name)
    missing = [file for file in (*layout.train, layout.test) if not (folder / file).exists()]
    if missing:
        raise UserError(f"{folder}: lacks {', '.join(missing)}; unpack {layout.archive} there")
    classes = _class_names(folder, layout)
    train = _join([_read_records(folder / file, layout) for file in layout.train])
    test = _join([_read_records(folder / layout.test, layout)])
    return image_dataset(train, test, classes, scale=1 / 255)


def _read_records(path: Path, layout: Layout) -> np.ndarray:
    raw = read_file(path)
    width = len(layout.label_ranges) + PIXELS
    # A label byte is never that high, so no valid record of the binary format starts like this.
    if raw.startswith(PICKLE_START):
        raise _pickled(path, layout)
    if not raw or len(raw) % width:
        raise UserError(
            f"{path}: {len(raw)} bytes are not whole records of {width} bytes: record {len(raw) // width} is cut off; "
            f"fetch {layout.archive} again"
        )
    records = np.frombuffer(raw, np.uint8).reshape(-1, width)
    for column, classes in enumerate(layout.label_ranges):
        check_labels(path, records[:, column], classes)
    return records


def _join(files: list[np.ndarray]) -> dict[str, np.ndarray]:
    x = np.concatenate([records[:, -PIXELS:] for records in files]).reshape(-1, *SHAPE)
    # The label byte before the pixels is the only label of CIFAR-10 and the fine label of CIFAR-100.
    y = np.concatenate([records[:, -PIXELS - 1] for records in files]).astype(np.int64)
    return {"x": x, "y": y}


def _class_names(folder: Path, layout: Layout) -> list[str]:
    path = folder / layout.names
    if not path.exists():
        return layout.default_names.split()
    try:
        names = read_file(path).decode("utf-8-sig").split()
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file of class names; unpack {layout.archive} again or remove it") from None
    if len(names) != layout.label_ranges[-1]:
        raise UserError(f"{path}: {len(names)} class names where {layout.label_ranges[-1]} are expected")
    return names


def _pickled(path: Path, layout: Layout) -> UserError:
    return UserError(
        f"{path}: the pickled variant is not read, since a pickle can run code; fetch the binary version "
        f"({layout.archive}, https://www.cs.toronto.edu/~kriz/cifar.html), which unpacks to {layout.folder}/"
    )
