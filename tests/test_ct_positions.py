"""Slices of two doses are paired by where they lie in the patient, whatever their numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from phantoms import write_patients

from fedkd_mpi.datasets.mayo_ct import _counterpart, read_series
from fedkd_mpi.errors import UserError

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed (extra ct)")


def place(folder: Path, positions: list[float], **changes: object) -> None:
    for path, position in zip(sorted(folder.rglob("*.IMA")), positions, strict=True):
        data = pydicom.dcmread(path)
        data.ImageOrientationPatient, data.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [-10, 5, position]
        for name, value in changes.items():
            setattr(data, name, value)
        data.save_as(path)


def folders(root: Path) -> tuple[Path, Path]:
    write_patients(root, {"L001": 3}, ("full", "quarter"))
    return root / "mayo-2016/full_3mm/L001", root / "mayo-2016/quarter_3mm/L001"


def test_order_is_of_positions_and_other_positions_are_refused(tmp_path: Path):
    full, quarter = folders(tmp_path)
    place(full, [9, 3, 6])
    place(quarter, [9.001, 3, 6])
    series = read_series(full)
    assert series.positions.tolist() == [3, 6, 9]
    assert np.array_equal(_counterpart(quarter, series, full), series.slices + 10)
    place(quarter, [9, 3, 7])
    with pytest.raises(UserError, match=r"slice 2 is at ImagePositionPatient 7, but .* has one at 6"):
        _counterpart(quarter, series, full)
    place(quarter, [9, 3, 6], PixelSpacing=[4, 4])
    with pytest.raises(UserError, match=r"pixel 4\.0, but .* has 5\.0"):
        _counterpart(quarter, series, full)
    place(quarter, [3, 3, 6])
    with pytest.raises(UserError, match="ImagePositionPatient 3 is that of another slice"):
        read_series(quarter)


@pytest.mark.parametrize("tag", ["RescaleSlope", "RescaleIntercept", "PixelSpacing"])
def test_an_empty_tag_is_named(tmp_path: Path, tag: str):
    full, _ = folders(tmp_path)
    place(full, [0, 3, 6], **{tag: None})
    with pytest.raises(UserError, match=f"a DICOM file without {tag}"):
        read_series(full)


def test_two_series_in_a_folder_are_told_apart(tmp_path: Path):
    full, quarter = folders(tmp_path)
    place(full, [0, 3, 6], SeriesInstanceUID="1.2.3")
    place(quarter, [1, 4, 7], SeriesInstanceUID="1.2.4")
    (full / "more").symlink_to(quarter)
    (full / "b.IMA").write_bytes(next(quarter.rglob("*.IMA")).read_bytes())
    with pytest.raises(UserError, match=r"more than one series: series 1\.2\.\d, before it 1\.2\.\d"):
        read_series(full)
