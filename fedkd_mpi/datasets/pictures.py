"""Decoding of compressed pictures (JPEG and other formats of Pillow) to one array of pixels."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fedkd_mpi.common.machine import require_memory
from fedkd_mpi.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image, Resampling

DEEP = ("I", "F")  # modes of more than 8 bits, which Pillow cuts off where it makes them RGB


class Encoded(NamedTuple):
    """A picture in memory, as it would be in a file; `name` is for messages."""

    name: str
    data: bytes


Source = Path | Encoded


def read_pictures(paths: Sequence[Path], size: int, *, resize: bool) -> np.ndarray:
    """Return pictures as uint8 [n, 3, size, size], in the order of the paths; grey pictures get three equal channels.

    With `resize` the largest central square is scaled (bilinear, antialiased); otherwise pictures of another size are
    refused. Raises UserError naming the first file that cannot be read.
    """
    return _read(paths, (size, size), resize=resize, mode="RGB")


def read_alike(sources: Sequence[Source], size: int | None, grey: bool) -> np.ndarray:
    """Return pictures as uint8 [n, 3, height, width], with `grey` [n, 1, height, width], in the order of the sources.

    With `size` the largest square in the middle is scaled to so many pixels a side; without it all must have the size
    of the first. Raises UserError naming the first that cannot be read, or is of another size.
    """
    sides = (size, size) if size else _open(sources[0], "RGB").size
    mode, hint = "L" if grey else "RGB", ": data.size scales all to one size"
    return _read(sources, sides, resize=size is not None, mode=mode, hint=hint)


def _read(sources: Sequence[Source], sides: tuple[int, int], *, resize: bool, mode: str, hint: str = "") -> np.ndarray:
    width, height = sides
    shape = len(sources), len(mode), height, width
    require_memory(f"{len(sources)} pictures of {width} x {height} pixels", int(np.prod(shape)), "scale them down")
    pixels = np.empty(shape, np.uint8)

    def read(index: int) -> None:
        picture = _open(sources[index], mode, None if resize else sides, hint)
        if resize:
            side = min(picture.size)
            left, top = (picture.width - side) // 2, (picture.height - side) // 2
            box = left, top, left + side, top + side
            picture = picture.resize(sides, _bilinear(), box=box)
        pixels[index] = np.asarray(picture).reshape(height, width, len(mode)).transpose(2, 0, 1)

    # Pillow decodes without the interpreter lock; each thread writes its own part of the array.
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        for _ in threads.map(read, range(len(sources))):
            pass
    return pixels


def _open(source: Source, mode: str, sides: tuple[int, int] | None = None, hint: str = "") -> Image:
    """Return a picture decoded as RGB or L; raises UserError where it cannot be, or has other sides than are due."""
    try:
        from PIL import Image
    except ImportError:
        raise UserError("this data set's pictures are read with Pillow: pip install 'fedkd-mpi[images]'") from None
    name = source.name if isinstance(source, Encoded) else source
    if isinstance(source, Path) and source.exists() and not source.is_file():
        raise UserError(f"{name}: not a file; remove it")
    try:
        with Image.open(io.BytesIO(source.data) if isinstance(source, Encoded) else source) as picture:
            if sides and picture.size != sides:
                raise UserError(
                    f"{name}: {picture.width} x {picture.height} pixels where {sides[0]} x {sides[1]} are due{hint}"
                )
            if picture.mode.split(";")[0] in DEEP:
                raise UserError(
                    f"{name}: pixels of more than 8 bits (mode {picture.mode}): convert it to 8 bits, or use "
                    "data.name=npz"
                )
            return picture.convert(mode)
    except FileNotFoundError:
        raise UserError(f"{name}: no such file") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        text = " ".join(str(error).split())
        raise UserError(f"{name}: not a whole picture ({text}); fetch it again, or remove it") from None


def _bilinear() -> Resampling:
    from PIL import Image

    return Image.Resampling.BILINEAR
