"""Slices of two doses are paired by where they lie in the patient, whatever their numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from phantoms import write_patients

from fedkd_mpi.datasets.mayo_ct import _counterpart, load_mayo_ct, read_series
from fedkd_mpi.errors import UserError

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed (extra ct)")


def assign_clients(folder: Path, positions: list[float], **changes: object) -> None:
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
    assign_clients(full, [9, 3, 6])
    assign_clients(quarter, [9.001, 3, 6])
    series = read_series(full)
    assert series.positions.tolist() == [3, 6, 9]
    assert np.array_equal(_counterpart(quarter, series, full), series.slices + 10)
    assign_clients(quarter, [9, 3, 7])
    with pytest.raises(UserError, match=r"a slice is at ImagePositionPatient 7, but .*full_3mm/L001 has none there"):
        _counterpart(quarter, series, full)
    assign_clients(quarter, [9, 3, 6], PixelSpacing=[4, 4])
    with pytest.raises(UserError, match=r"pixel 4\.0, but .* has 5\.0"):
        _counterpart(quarter, series, full)
    assign_clients(quarter, [3, 3, 6])
    with pytest.raises(UserError, match="ImagePositionPatient 3 is that of another slice"):
        read_series(quarter)


@pytest.mark.parametrize("tag", ["RescaleSlope", "RescaleIntercept", "PixelSpacing"])
def test_an_empty_tag_is_named(tmp_path: Path, tag: str):
    full, _ = folders(tmp_path)
    assign_clients(full, [0, 3, 6], **{tag: None})
    with pytest.raises(UserError, match=f"a DICOM file without {tag}"):
        read_series(full)


def test_two_series_in_a_folder_are_told_apart(tmp_path: Path):
    full, quarter = folders(tmp_path)
    assign_clients(full, [0, 3, 6], SeriesInstanceUID="1.2.3")
    assign_clients(quarter, [1, 4, 7], SeriesInstanceUID="1.2.4")
    (full / "more").symlink_to(quarter)
    (full / "b.IMA").write_bytes(next(quarter.rglob("*.IMA")).read_bytes())
    with pytest.raises(UserError, match=r"more than one series: series 1\.2\.\d, before it 1\.2\.\d"):
        read_series(full)


def change(folder: Path, **changes: object) -> Path:
    """Set tags of a folder's first file, or delete those that are Ellipsis."""
    path = sorted(folder.rglob("*.IMA"))[0]
    data = pydicom.dcmread(path)
    for name, value in changes.items():
        if value is ...:
            delattr(data, name)
        else:
            setattr(data, name, value)
    data.save_as(path)
    return path


FAULTY = {
    "no place": ({"InstanceNumber": ...}, "lacks ImagePositionPatient, SliceLocation and InstanceNumber"),
    "no place said": ({"InstanceNumber": None}, "lacks ImagePositionPatient, SliceLocation and InstanceNumber"),
    "no rows": ({"Rows": None}, "without Rows"),
    "frames": ({"NumberOfFrames": 2}, "NumberOfFrames"),
    "colours": ({"SamplesPerPixel": 3}, "SamplesPerPixel"),
    "one spacing": ({"PixelSpacing": [5]}, "PixelSpacing"),
    "oblong": ({"PixelSpacing": [5, 4]}, r"PixelSpacing is \[5, 4\]"),
    "no pixel": ({"PixelSpacing": [0, 0]}, "PixelSpacing"),
    "orientation": (
        {"ImageOrientationPatient": [1, 0, 0, 1, 0, 0], "ImagePositionPatient": [0, 0, 0]},
        "ImageOrientationPatient is .* two unit vectors",
    ),
    "corner": (
        {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "ImagePositionPatient": [0, 0]},
        "ImagePositionPatient",
    ),
}


@pytest.mark.parametrize("case", FAULTY)
def test_file_and_tag_are_named(tmp_path: Path, case: str):
    full, _ = folders(tmp_path)
    changes, message = FAULTY[case]
    path = change(full, **changes)
    with pytest.raises(UserError, match=message) as caught:
        read_series(full)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pixels_that_need_a_decoder_are_named(tmp_path: Path):
    full, _ = folders(tmp_path)
    path = sorted(full.rglob("*.IMA"))[0]
    data = pydicom.dcmread(path)
    data.PixelData = pydicom.encaps.encapsulate([b"\xff\x4f" + bytes(30)])
    data["PixelData"].VR = "OB"
    data.file_meta.TransferSyntaxUID = pydicom.uid.JPEG2000Lossless
    data.save_as(path)
    with pytest.raises(UserError, match="not a whole DICOM slice") as caught:
        read_series(full)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_signed_pixels_and_inverted_greys_are_the_same_hu(tmp_path: Path):
    full, _ = folders(tmp_path)
    before = read_series(full).slices
    path = sorted(full.rglob("*.IMA"))[0]
    data = pydicom.dcmread(path)
    signed = data.pixel_array.astype(np.int32) - 1024
    data.PixelRepresentation, data.RescaleIntercept, data.PhotometricInterpretation = 1, 0, "MONOCHROME1"
    data.PixelData = signed.astype("<i2").tobytes()
    data.save_as(path)
    assert np.array_equal(read_series(full).slices, before)


def test_a_slice_that_one_series_lacks_is_named(tmp_path: Path):
    full, quarter = folders(tmp_path)
    assign_clients(full, [0, 3, 6])
    assign_clients(quarter, [6, 3, 0])
    series = read_series(full)
    assert np.array_equal(_counterpart(quarter, series, full), series.slices[::-1] + 10)
    sorted(quarter.rglob("*.IMA"))[1].unlink()
    with pytest.raises(UserError, match=r"full_3mm/L001: a slice is at ImagePositionPatient 3, but .*quarter"):
        _counterpart(quarter, series, full)


def test_patches_of_air_are_left_out_by_key(tmp_path: Path):
    write_patients(tmp_path, {"L001": 2, "L506": 1}, ("full", "quarter"))
    options = {"window": [-160, 240], "patch": 8, "owner": "patient", "photons": None, "angles": 10}
    options |= {"test_patients": ["L506"], "thickness": "3mm"}
    all_, some = (load_mayo_ct(tmp_path, 0, **options, drop_constant=drop).train for drop in (False, True))
    seen = np.clip(all_["y"], -160, 240)
    kept = seen.min((1, 2, 3)) < seen.max((1, 2, 3))
    assert 0 < kept.sum() < len(kept)
    for key, array in some.items():
        assert np.array_equal(array, all_[key][kept])


@pytest.mark.parametrize(
    "name", [".DS_Store", "._L001_001.IMA", "Thumbs.db", "desktop.ini", "__MACOSX/a.IMA", ".ipynb_checkpoints/a.IMA"]
)
def test_what_desktops_leave_is_no_slice(tmp_path: Path, name: str):
    full, _ = folders(tmp_path / "__MACOSX")  # the folder of all data may have any name
    before = read_series(full).slices
    stray = full / name
    stray.parent.mkdir(exist_ok=True)
    stray.write_bytes(sorted(full.rglob("*.IMA"))[0].read_bytes())
    assert np.array_equal(read_series(full).slices, before)
