"""Low-dose CT as in the Mayo 2016 challenge: DICOM slices of the same patients at full and at a quarter of the dose.

full_3mm/<patient>/ and quarter_3mm/<patient>/ (or 1mm) hold a series each, at any depth, a file a slice. Where there
are full-dose slices alone, data.photons simulates the low dose. Source: McCollough et al. 2017, Medical Physics 44(10).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedkd_mpi.console import say
from fedkd_mpi.datasets import Dataset, data_folder, is_stray
from fedkd_mpi.errors import UserError
from fedkd_mpi.streams import generator

FOLDER = "mayo-2016"
SAME_PLACE = 0.01  # mm: positions are decimal text
SIDE, PATIENTS, SLICES, TEST_SLICES = 512, 9, 2167, 211  # of the challenge's 3mm series, L506 being the test patient


class Series(NamedTuple):
    """One patient's slices, HU [n, H, W] by position, the pixels' size in mm, and the scanner's name.

    `positions` float64 [n] are mm along the normal of the slices, or what `ordered_by` names where there are none.
    """

    slices: np.ndarray
    pixel: float
    scanner: str
    positions: np.ndarray
    ordered_by: str
    orientation: tuple[float, ...]


class Slice(NamedTuple):
    """A file's slice: its place in the series, HU [H, W], and what all slices of a series have in common."""

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
) -> Dataset:
    """Return pairs "x" (low dose) and "y" (full dose) of HU, int16 [n, 1, H, W], from root/mayo-2016.

    Training samples are the patches of a grid, "group" their patient or scanner; test samples are whole slices. Raises
    UserError naming the file or folder that is missing, malformed or without its counterpart.
    """
    folder = data_folder(root, "mayo_ct", FOLDER)
    full, quarter = folder / f"full_{thickness}", folder / f"quarter_{thickness}"
    patients = _patients(full)
    strangers = [name for name in test_patients if name not in patients]
    if strangers or len(patients) == len(test_patients):
        raise UserError(
            f"data.test_patients={test_patients}: {full} has {', '.join(patients)}, one of them to train on"
        )
    if photons is None and not quarter.is_dir():
        raise UserError(f"{quarter}: no such folder; fetch it, or set data.photons to simulate the low dose")
    owners: list[str] = []
    pairs: dict[bool, list[tuple[np.ndarray, np.ndarray]]] = {True: [], False: []}
    groups = []
    for number, name in enumerate(patients):
        series = read_series(full / name)
        low = (
            _simulate(series, number, photons, angles) if photons else _counterpart(quarter / name, series, full / name)
        )
        test = name in test_patients
        if not test:
            who = name if owner == "patient" else series.scanner
            owners += [] if who in owners else [who]
            count = len(series.slices) * (series.slices.shape[1] // patch) * (series.slices.shape[2] // patch)
            if not count:
                raise UserError(f"{full / name}: slices of {series.slices.shape[1:]} pixels hold no patch of {patch}")
            groups.append(np.full(count, owners.index(who), np.int64))
            low, series = _patches(low, patch), series._replace(slices=_patches(series.slices, patch))
        pairs[test].append((low, series.slices))
    shapes = {pair[1].shape[1:] for pair in pairs[True]}
    if len(shapes) > 1:
        raise UserError(f"data.test_patients={test_patients}: their slices differ in size: {sorted(shapes)}")
    train, test = (
        {key: np.concatenate([pair[i] for pair in pairs[part]])[:, np.newaxis] for i, key in enumerate("xy")}
        for part in (False, True)
    )
    return Dataset({**train, "group": np.concatenate(groups)}, test, {"window": list(window), "owners": owners})


def stand_in_mayo_ct(
    root: Path | None, seed: int, *, window: tuple[int, int], patch: int, owner: str, **_: object
) -> Dataset:
    """Return empty slices in the numbers of the challenge's 3mm series, of nine patients (one scanner) and a tenth."""
    count = SLICES * (SIDE // patch) ** 2
    owners = PATIENTS if owner == "patient" else 1
    train, test = (
        {key: np.zeros((n, 1, side, side), np.int16) for key in "xy"}
        for n, side in ((count, patch), (TEST_SLICES, SIDE))
    )
    train["group"] = np.arange(count) * owners // count
    return Dataset(train, test, {"window": list(window), "owners": [str(number) for number in range(owners)]})


def read_series(folder: Path) -> Series:
    """Return the DICOM slices of a folder by their position; raises UserError naming the file at fault."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not is_stray(path))
    if not files:
        raise UserError(f"{folder}: no DICOM files")
    first: Slice | None = None
    slices: dict[float, np.ndarray] = {}
    for path in files:
        one = _read_slice(path)
        first = first or one
        if one.image.shape != first.image.shape:
            raise UserError(f"{path}: {one.image.shape} pixels where the slices before have {first.image.shape}")
        for what in ("series", "pixel", "scanner", "ordered_by", "orientation"):
            mine, theirs = getattr(one, what), getattr(first, what)
            if mine != theirs:
                raise UserError(f"{path}: {folder} holds more than one series: {what} {mine}, before it {theirs}")
        position = round(one.position, 3)
        if position in slices:
            raise UserError(f"{path}: {one.ordered_by} {position:g} is that of another slice of {folder}")
        slices[position] = one.image
    if first.ordered_by == "InstanceNumber":
        say(f"fedkd_mpi: {folder}: no positions in its files; slices are ordered by InstanceNumber", error=True)
    order = sorted(slices)
    stacked = np.stack([slices[position] for position in order])
    return Series(stacked, first.pixel, first.scanner, np.array(order), first.ordered_by, first.orientation)


def _place(slice_: Any) -> tuple[float, str, tuple[float, ...]]:
    """Return a slice's place, what it is taken from, and the orientation, () where none is given."""
    orientation, corner = slice_.get("ImageOrientationPatient"), slice_.get("ImagePositionPatient")
    if orientation and corner:
        axes = np.array(orientation, np.float64).reshape(2, 3)
        position = float(np.cross(*axes) @ np.array(corner, np.float64))
        return position, "ImagePositionPatient", tuple((np.round(axes.ravel(), 4) + 0).tolist())
    if slice_.get("SliceLocation") not in (None, ""):
        return float(slice_.SliceLocation), "SliceLocation", ()
    return float(slice_.InstanceNumber), "InstanceNumber", ()


def _read_slice(path: Path) -> Slice:
    try:
        from pydicom import dcmread
    except ImportError:
        raise UserError("CT slices are read with pydicom: pip install 'fedkd-mpi[ct]'") from None
    try:
        slice_ = dcmread(path)
        missing = [
            name
            for name in ("PixelData", "RescaleSlope", "RescaleIntercept", "PixelSpacing")
            if name not in slice_ or (name != "PixelData" and slice_[name].value in (None, ""))
        ]
        if not missing:
            image = slice_.pixel_array * float(slice_.RescaleSlope) + float(slice_.RescaleIntercept)
            pixel, (position, ordered_by, orientation) = float(slice_.PixelSpacing[0]), _place(slice_)
    except Exception as error:  # pydicom raises what it trips over
        text = " ".join(str(error).split())
        raise UserError(f"{path}: not a whole DICOM slice ({text}); fetch it again") from None
    if missing:
        raise UserError(f"{path}: a DICOM file without {', '.join(missing)}: no CT slice")
    if image.ndim != 2:
        raise UserError(f"{path}: an array of {image.ndim} dimensions where a slice has 2")
    scanner = " ".join(str(slice_.get(name, "")) for name in ("Manufacturer", "ManufacturerModelName", "StationName"))
    if not np.isfinite([position, pixel]).all() or pixel <= 0:
        raise UserError(f"{path}: PixelSpacing {pixel} and {ordered_by} {position:g} must be numbers of mm")
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
    if low.shape != full.slices.shape:
        sizes = [" x ".join(map(str, shape)) for shape in (low.shape, full.slices.shape)]
        raise UserError(f"{folder}: slices {sizes[0]}, but {full_folder} has {sizes[1]}")
    for what in ("ordered_by", "pixel", "orientation"):
        if getattr(series, what) != getattr(full, what):
            values = getattr(series, what), getattr(full, what)
            raise UserError(f"{folder}: {what} {values[0]}, but {full_folder} has {values[1]}")
    if (apart := np.flatnonzero(np.abs(series.positions - full.positions) > SAME_PLACE)).size:
        at, by = apart[0], full.ordered_by
        places = f"{series.positions[at]:g}, but {full_folder} has one at {full.positions[at]:g}"
        raise UserError(f"{folder}: slice {at + 1} is at {by} {places}")
    return low


def _simulate(series: Series, patient: int, photons: float, angles: int) -> np.ndarray:
    from fedkd_mpi.datasets.low_dose import low_dose

    # A fixed seed in place of the run's: runs of different seeds see the same slices.
    rngs = (generator(0, "low dose", patient, number) for number in range(len(series.slices)))
    pairs = zip(series.slices, rngs, strict=True)
    return np.stack([low_dose(image, series.pixel, photons, angles, rng) for image, rng in pairs])


def _patches(slices: np.ndarray, side: int) -> np.ndarray:
    """Return the patches [n, side, side] of a grid over slices [m, H, W]; what is left over at the ends is dropped."""
    count, rows, columns = len(slices), slices.shape[1] // side, slices.shape[2] // side
    cut = slices[:, : rows * side, : columns * side].reshape(count, rows, side, columns, side)
    return cut.transpose(0, 1, 3, 2, 4).reshape(-1, side, side)
