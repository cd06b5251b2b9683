"""The folders under $FEDKD_DATA from which each data set or corpus is read."""

from __future__ import annotations

from pathlib import Path

FOLDERS = {
    "mnist": ("mnist",),
    "fashion_mnist": ("fashion-mnist",),
    "cifar10": ("cifar-10-batches-bin",),
    "cifar100": ("cifar-100-binary",),
    "tiny_imagenet": ("tiny-imagenet-200",),
    "flowers102": ("flowers-102",),
    "mayo_ct": ("mayo-2016",),
    "ade": ("ade-corpus-v2",),
    "smm4h": ("smm4h",),
    "cadec": ("cadec",),  # a corpus of medical_ner, which also reads those of ade and smm4h
    "mind_small": ("MINDsmall_train", "MINDsmall_dev"),
    "mind_large": ("MINDlarge_train", "MINDlarge_dev"),
}


def found(root: Path) -> dict[str, bool]:
    """Return for every data set whether all of its folders exist; their content is not read."""
    return {name: all((root / folder).is_dir() for folder in folders) for name, folders in FOLDERS.items()}
