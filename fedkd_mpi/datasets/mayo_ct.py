"""Low-dose CT as in the Mayo 2016 challenge: DICOM slices of the same patients at full and at a quarter of the dose.

full_3mm/<patient>/ and quarter_3mm/<patient>/ (or 1mm) contain one series each, at any depth, with one file per slice.
With full-dose slices only, data.photons simulates the low dose. Source: McCollough et al. 2017, Medical Physics 44(10).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedkd_mpi.common.console import say
from fedkd_mpi.datasets import Dataset, data_folder, is_stray
from fedkd_mpi.datasets.scanners import Scanners, shrunk, simulate
from fedkd_mpi.errors import UserError, shown

SAME_PLACE = 0.01  # mm: positions are decimal text
SIDE, PATIENTS, SLICES, TEST_SLICES = 512, 9, 2167, 211  # the challenge's 3mm series with test patient L506


class Series(NamedTuple):
    """The slices of one patient, HU [n, H, W] in order of position, the pixel size in mm, and the name of the scanner.

    `positions` float64 [n] are in mm along the normal of the slices, or values of the tag `ordered_by`.
    """

    slices: np.ndarray
    pixel: float
    scanner: str
    positions: np.ndarray
    ordered_by: str
    orientation: tuple[float, ...]


class Slice(NamedTuple):
    """The slice of one file: its position in the series, HU [H, W], and the values common to all slices of a series."""

    position: float
    ordered_by: str
    image: np.ndarray
    pixel: float
    scanner: str
    orientation: tuple[float, ...]
    series: str


def load_mayo_ct(
    root: Path | None,
    seed: int,
    *,
    window: tuple[int, int],
    patch: int,
    test_patients: list[str],
    owner: str,
    thickness: str,
    photons: float | None,
    angles: int,
    drop_constant: bool,
    range: tuple[int, int] | None = None,
    size: int | None = None,
    scanners: list[dict[str, Any]] | None = None,
) -> Dataset:
    """Return pairs "x" (low dose) and "y" (full dose) of HU, int16 [n, 1, H, W], from root/mayo-2016.

    Training samples are patches on a grid, "group" is their patient or scanner; test samples are complete slices. Of
    `scanners`, training patients and test slices have one each, in turn. With `drop_constant`, patches whose full-dose
    pixels are constant within the window (air) are omitted. Raises UserError naming the file or folder that is missing,
    malformed or without its counterpart.
    """
    folder = data_folder(root, "mayo_ct")
    full, quarter = folder / f"full_{thickness}", folder / f"quarter_{thickness}"
    patients = _patients(full)
    strangers = [name for name in test_patients if name not in patients]
    if strangers or len(patients) == len(test_patients):
        raise UserError(
            f"data.test_patients={test_patients}: {full} has {', '.join(patients)}, one of them to train on"
        )
    if photons is None and scanners is None and not quarter.is_dir():
        raise UserError(f"{quarter}: no such folder; fetch it, or set data.photons to simulate the low dose")
    machines = Scanners(scanners, len(patients) - len(test_patients)) if scanners else None
    owners: list[str] = []
    pairs: dict[bool, list[tuple[np.ndarray, np.ndarray]]] = {True: [], False: []}
    groups: list[np.ndarray] = []
    for number, name in enumerate(patients):
        series, tested = read_series(full / name), name in test_patients
        slices, pixel = shrunk(series.slices, series.pixel, size, full / name)
        if machines:
            low = machines.scan(slices, pixel, number, None if tested else len(groups))
        elif photons:
            low = simulate(slices, pixel, number, photons, angles)
        else:
            low, _ = shrunk(_counterpart(quarter / name, series, full / name), pixel, size, quarter / name)
        series = series._replace(slices=slices)
        if not tested:
            who = machines.owner(len(groups)) if machines else name if owner == "patient" else series.scanner
            owners += [] if who in owners else [who]
            count = len(series.slices) * (series.slices.shape[1] // patch) * (series.slices.shape[2] // patch)
            if not count:
                raise UserError(f"{full / name}: slices of {series.slices.shape[1:]} pixels hold no patch of {patch}")
            low, series = _patches(low, patch), series._replace(slices=_patches(series.slices, patch))
            if drop_constant:
                seen = np.clip(series.slices, *window)
                kept = seen.min((1, 2)) < seen.max((1, 2))
                low, series, count = low[kept], series._replace(slices=series.slices[kept]), int(kept.sum())
            if not count:
                raise UserError(f"{full / name}: all patches are constant within data.window={list(window)}")
            groups.append(np.full(count, owners.index(who), np.int64))
        pairs[tested].append((low, series.slices))
    shapes = {pair[1].shape[1:] for pair in pairs[True]}
    if len(shapes) > 1:
        raise UserError(f"data.test_patients={test_patients}: their slices differ in size: {sorted(shapes)}")
    train, test = (
        {key: np.concatenate([pair[i] for pair in pairs[part]])[:, np.newaxis] for i, key in enumerate("xy")}
        for part in (False, True)
    )
    meta = {"window": list(window), "owners": owners, **({"range": list(range)} if range else {})}
    if machines and (notes := machines.notes()):
        meta["notes"] = notes
    return Dataset({**train, "group": np.concatenate(groups)}, test, meta)


def stand_in_mayo_ct(
    root: Path | None,
    seed: int,
    *,
    window: tuple[int, int],
    patch: int,
    owner: str,
    range: tuple[int, int] | None = None,
    size: int | None = None,
    scanners: list[dict[str, Any]] | None = None,
    **_: object,
) -> Dataset:
    """Return blank slices, as many as in the challenge's 3mm series: nine patients (one scanner) and one for test."""
    pixels = size or SIDE
    count = SLICES * (pixels // patch) ** 2
    owners = len(scanners) if scanners else PATIENTS if owner == "patient" else 1
    train, test = (
        {key: np.zeros((n, 1, side, side), np.int16) for key in "xy"}
        for n, side in ((count, patch), (TEST_SLICES, pixels))
    )
    groups = np.arange(count) * owners // count
    meta = {"window": list(window), "owners": list(map(str, np.arange(owners)))}
    return Dataset({**train, "group": groups}, test, meta | ({"range": list(range)} if range else {}))


def read_series(folder: Path) -> Series:
    """Return the DICOM slices of a folder in order of position; raises UserError naming an invalid file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not is_stray(path, folder))
    if not files:
        raise UserError(f"{folder}: no DICOM files")
    first = _read_slice(files[0])
    slices: dict[float, np.ndarray] = {}
    for path in files:
        one = _read_slice(path) if path is not files[0] else first
        if one.image.shape != first.image.shape:
            raise UserError(f"{path}: {one.image.shape} pixels where the slices before have {first.image.shape}")
        for what in ("series", "pixel", "scanner", "ordered_by", "orientation"):
            mine, theirs = getattr(one, what), getattr(first, what)
            if mine != theirs:
                values = f"{shown(mine, 120)}, before it {shown(theirs, 120)}"
                raise UserError(f"{path}: {folder} holds more than one series: {what} {values}")
        position = round(one.position, 3)
        if position in slices:
            raise UserError(f"{path}: {one.ordered_by} {position:g} is that of another slice of {folder}")
        slices[position] = one.image
    if first.ordered_by == "InstanceNumber":
        say(f"fedkd_mpi: {folder}: no positions in its files; slices are ordered by InstanceNumber", error=True)
    order = sorted(slices)
    stacked = np.stack([slices[position] for position in order])
    return Series(stacked, first.pixel, first.scanner, np.array(order), first.ordered_by, first.orientation)


def _numbers(slice_: Any, tag: str, count: int) -> list[float]:
    """Return the finite numbers of a tag; raises UserError naming the tag if it contains something else."""
    try:
        value = slice_[tag].value
        numbers = [float(part) for part in (value if isinstance(value, Sequence) and count > 1 else [value])]
    except KeyError:
        raise UserError(f"lacks {tag}") from None
    except (TypeError, ValueError):
        raise UserError(f"{tag} holds no number") from None
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise UserError(f"{tag} is {numbers}, expected {count} finite number{'s' * (count > 1)}")
    return numbers


def _place(slice_: Any) -> tuple[float, str, tuple[float, ...]]:
    """Return the position of a slice, the name of the tag that contains it, and the orientation or ()."""
    if slice_.get("ImageOrientationPatient") and slice_.get("ImagePositionPatient"):
        axes = np.array(_numbers(slice_, "ImageOrientationPatient", 6)).reshape(2, 3)
        if not np.allclose(axes @ axes.T, np.eye(2), atol=0.01):
            raise UserError(
                f"ImageOrientationPatient is {axes.ravel().tolist()}, expected two unit vectors, orthogonal"
            )
        position = float(np.cross(*axes) @ np.array(_numbers(slice_, "ImagePositionPatient", 3)))
        return position, "ImagePositionPatient", tuple((np.round(axes.ravel(), 4) + 0).tolist())
    for tag in ("SliceLocation", "InstanceNumber"):
        if slice_.get(tag) not in (None, ""):
            return _numbers(slice_, tag, 1)[0], tag, ()
    raise UserError("lacks ImagePositionPatient, SliceLocation and InstanceNumber: its place is not known")


def _read_slice(path: Path) -> Slice:
    try:
        from pydicom import dcmread
    except ImportError:
        raise UserError("CT slices are read with pydicom: pip install 'fedkd-mpi[ct]'") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a damaged file is refused below, in one line
            return _slice(dcmread(path))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # pydicom raises various exceptions for damaged files
        text = shown(" ".join(str(error).split()))
        raise UserError(f"{path}: not a whole DICOM slice ({text}); fetch it again") from None


def _slice(slice_: Any) -> Slice:
    """Return the slice in a DICOM file; raises UserError naming an invalid tag, or an exception of pydicom."""
    missing = [
        name
        for name in ("PixelData", "Rows", "Columns", "RescaleSlope", "RescaleIntercept", "PixelSpacing")
        if name not in slice_ or (name != "PixelData" and slice_[name].value in (None, ""))
    ]
    if missing:
        raise UserError(f"a DICOM file without {', '.join(missing)}: no CT slice")
    (slope,), (intercept,) = _numbers(slice_, "RescaleSlope", 1), _numbers(slice_, "RescaleIntercept", 1)
    pixel, across = _numbers(slice_, "PixelSpacing", 2)
    if pixel <= 0 or pixel != across:
        raise UserError(f"PixelSpacing is [{pixel:g}, {across:g}], expected square pixels of mm")
    if int(slice_.get("NumberOfFrames") or 1) != 1 or int(slice_.get("SamplesPerPixel") or 1) != 1:
        raise UserError("NumberOfFrames and SamplesPerPixel must be 1: a grey slice per file")
    position, ordered_by, orientation = _place(slice_)
    image = slice_.pixel_array * slope + intercept
    if image.ndim != 2:
        raise UserError(f"an array of {image.ndim} dimensions where a slice has 2")
    scanner = " ".join(str(slice_.get(name, "")) for name in ("Manufacturer", "ManufacturerModelName", "StationName"))
    hounsfield = np.clip(np.round(image), -32768, 32767).astype(np.int16)
    series, scanner = str(slice_.get("SeriesInstanceUID", "")), scanner.strip() or "unnamed"
    return Slice(position, ordered_by, hounsfield, pixel, scanner, orientation, series)


def _patients(folder: Path) -> list[str]:
    try:
        names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not is_stray(path))
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}; it holds a folder of full-dose slices for each patient") from None
    if not names:
        raise UserError(f"{folder}: no folders of patients (L067, ...)")
    return names


def _counterpart(folder: Path, full: Series, full_folder: Path) -> np.ndarray:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder, the low-dose counterpart of {full_folder}")
    series = read_series(folder)
    low = series.slices
    if low.shape[1:] != full.slices.shape[1:]:
        sizes = [" x ".join(map(str, shape)) for shape in (low.shape, full.slices.shape)]
        raise UserError(f"{folder}: slices {sizes[0]}, but {full_folder} has {sizes[1]}")
    for what in ("ordered_by", "pixel", "orientation"):
        if getattr(series, what) != getattr(full, what):
            values = getattr(series, what), getattr(full, what)
            raise UserError(f"{folder}: {what} {values[0]}, but {full_folder} has {values[1]}")
    for here, there, whose in ((series, full, full_folder), (full, series, folder)):
        nearest = np.abs(here.positions[:, np.newaxis] - there.positions).min(1)
        if (apart := np.flatnonzero(nearest > SAME_PLACE)).size:
            lacking, having = (whose, folder if whose == full_folder else full_folder)
            raise UserError(
                f"{having}: a slice is at {full.ordered_by} {here.positions[apart[0]]:g}, but {lacking} has none there"
                f" ({len(series.positions)} and {len(full.positions)} slices)"
            )
    if len(low) != len(full.slices):
        raise UserError(f"{folder}: {len(low)} slices, but {full_folder} has {len(full.slices)}")
    return low


def _patches(slices: np.ndarray, side: int) -> np.ndarray:
    """Return the patches [n, side, side] of a grid on slices [m, H, W]; incomplete patches at the ends are omitted."""
    count, rows, columns = len(slices), slices.shape[1] // side, slices.shape[2] // side
    cut = slices[:, : rows * side, : columns * side].reshape(count, rows, side, columns, side)
    return cut.transpose(0, 1, 3, 2, 4).reshape(-1, side, side)
