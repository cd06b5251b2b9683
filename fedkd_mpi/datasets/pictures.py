"""Compressed pictures (JPEG and whatever else Pillow reads) -> one array of pixels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from fedkd_mpi.errors import UserError


def read_pictures(paths: Sequence[Path], size: int, *, resize: bool) -> np.ndarray:
    """Return pictures as uint8 [n, 3, size, size], in the order of the paths; grey ones get three equal channels.

    With `resize` the largest square in the middle is scaled (bilinear, over all pixels), otherwise a picture of another
    size is refused. Raises UserError naming the first file that cannot be read.
    """
    try:
        from PIL import Image
    except ImportError:
        raise UserError("this data set's pictures are read with Pillow: pip install 'fedkd-mpi[images]'") from None
    pixels = np.empty((len(paths), 3, size, size), np.uint8)

    def read(index: int) -> None:
        path = paths[index]
        try:
            with Image.open(path) as picture:
                if not resize and picture.size != (size, size):
                    raise UserError(f"{path}: {picture.width} x {picture.height} pixels where {size} x {size} are due")
                picture = picture.convert("RGB")
        except FileNotFoundError:
            raise UserError(f"{path}: no such file") from None
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise UserError(f"{path}: not a whole picture ({' '.join(str(error).split())}); fetch it again") from None
        if resize:
            side = min(picture.size)
            left, top = (picture.width - side) // 2, (picture.height - side) // 2
            box = left, top, left + side, top + side
            picture = picture.resize((size, size), Image.Resampling.BILINEAR, box=box)
        pixels[index] = np.asarray(picture).transpose(2, 0, 1)

    # Pillow decodes outside the interpreter's lock; each thread writes its own part of the array.
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        for _ in threads.map(read, range(len(paths))):
            pass
    return pixels
