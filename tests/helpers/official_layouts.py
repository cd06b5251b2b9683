"""Small data sets of pictures in the layouts in which they are published: classes differ in brightness and gradient."""

from __future__ import annotations

from pathlib import Path

import numpy as np

EACH = 8, 2  # pictures per class, in the training and in the test part


def pictures(classes: int, side: int, channels: int, each: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return pictures uint8 [n, channels, side, side] and their classes [n], in a mixed order."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(classes), each))
    ramp = np.linspace(-1, 1, side)
    base = 128 + 60 * np.cos(labels * np.pi / classes)[:, None, None, None]
    slope = 40 * np.sin(labels)[:, None, None, None] * ramp
    noise = rng.normal(0, 10, (len(labels), channels, side, side))
    return np.clip(base + slope + noise, 0, 255).astype(np.uint8), labels


def write_cifar(root: Path, name: str) -> None:
    """Write CIFAR-10 (10 classes), or CIFAR-100 with the first 20 of its classes."""
    if name == "cifar10":
        folder, names = root / "cifar-10-batches-bin", [f"data_batch_{number}.bin" for number in range(1, 6)]
        names, classes = [*names, "test_batch.bin"], 10
    else:
        folder, names, classes = root / "cifar-100-binary", ["train.bin", "test.bin"], 20
    folder.mkdir(parents=True)
    for number, file in enumerate(names):
        each = EACH[1] if number == len(names) - 1 or len(names) > 2 else EACH[0]
        x, y = pictures(classes, 32, 3, each, number)
        labels = y[:, None] if name == "cifar10" else np.stack([np.zeros_like(y), y], 1)
        (folder / file).write_bytes(np.concatenate([labels, x.reshape(len(x), -1)], 1).astype(np.uint8).tobytes())


def write_fashion_mnist(root: Path) -> None:
    """Write Fashion-MNIST of the official side of 28 pixels."""
    folder = root / "fashion-mnist"
    folder.mkdir(parents=True)
    for seed, (part, each) in enumerate(zip(("train", "t10k"), EACH, strict=True)):
        x, y = pictures(10, 28, 1, each, seed)
        for kind, array in (("images-idx3", x[:, 0]), ("labels-idx1", y)):
            head = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
            (folder / f"{part}-{kind}-ubyte").write_bytes(head + array.astype(np.uint8).tobytes())


def write_tiny_imagenet(root: Path, classes: int = 20) -> None:
    """Write Tiny-ImageNet with fewer classes."""
    folder = root / "tiny-imagenet-200"
    wnids = [f"n{number:08d}" for number in range(classes)]
    (folder / "val" / "images").mkdir(parents=True)
    (folder / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in wnids))
    x, y = pictures(classes, 64, 3, EACH[0], 0)
    for number, (image, label) in enumerate(zip(x, y, strict=True)):
        _save(folder / "train" / wnids[label] / "images" / f"{wnids[label]}_{number}.JPEG", image)
    x, y = pictures(classes, 64, 3, EACH[1], 1)
    for number, image in enumerate(x):
        _save(folder / "val" / "images" / f"val_{number}.JPEG", image)
    lines = [f"val_{number}.JPEG\t{wnids[label]}\t0\t0\t9\t9\n" for number, label in enumerate(y)]
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))


def write_flowers102(root: Path, classes: int = 20) -> None:
    """Write Flowers-102 with photographs of its first classes alone."""
    from scipy.io import savemat

    folder = root / "flowers-102"
    x, y = pictures(classes, 70, 3, sum(EACH), 0)
    for number, image in enumerate(x, 1):
        _save(folder / "jpg" / f"image_{number:05d}.jpg", image[:, :, :66])
    ids = np.arange(1, len(x) + 1)
    savemat(folder / "imagelabels.mat", {"labels": (y + 1)[None].astype(np.uint8)})
    parts = {"trnid": ids[::3], "valid": ids[1::3], "tstid": ids[2::3]}
    savemat(folder / "setid.mat", {name: part[None].astype(np.uint16) for name, part in parts.items()})


def _save(path: Path, image: np.ndarray) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.transpose(1, 2, 0)).save(path, "JPEG")
