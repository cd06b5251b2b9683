"""CT slices of phantoms as DICOM series, in the layout of the Mayo 2016 challenge."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def phantom(rng: np.random.Generator, side: int = 64) -> np.ndarray:
    """A body of soft tissue with organs and bones, ellipses of HU in air; int16 [side, side]."""
    rows, columns = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    image = np.full((side, side), -1000.0)
    ellipses = [(0, 0, 0.75, 0.9, 40)]
    for hu in (*rng.uniform(-100, 150, 6), 400):
        ellipses.append((*rng.uniform(-0.45, 0.45, 2), *rng.uniform(0.08, 0.3, 2), hu))
    for row, column, high, wide, hu in ellipses:
        image[((rows - row) / high) ** 2 + ((columns - column) / wide) ** 2 <= 1] = hu
    return np.round(image).astype(np.int16)


def write_slice(path: Path, image: np.ndarray, number: int, *, scanner: str = "SOMATOM", pixel: float = 5.0) -> None:
    """Write HU [H, W] as a DICOM slice; `pixel` mm a pixel, so that 64 of them are a body's width."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = generate_uid()
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    data.Modality, data.Manufacturer, data.ManufacturerModelName = "CT", "SIEMENS", scanner
    data.InstanceNumber, data.PixelSpacing = number, [pixel, pixel]
    data.RescaleSlope, data.RescaleIntercept = 1, -1024
    data.Rows, data.Columns = image.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
    data.PixelData = (image.astype(np.int32) + 1024).astype("<u2").tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path)


def write_patients(root: Path, slices: dict[str, int], kinds: tuple[str, ...] = ("full",)) -> dict[str, np.ndarray]:
    """Write so many slices of each patient, last slice first; return them by folder, the quarter dose 10 HU higher."""
    content = {}
    for patient, count in slices.items():
        rng = np.random.default_rng(int(patient[1:]))
        images = np.stack([phantom(rng) for _ in range(count)])
        for kind in kinds:
            folder = root / "mayo-2016" / f"{kind}_3mm" / patient
            content[f"{kind}/{patient}"] = images + (10 if kind == "quarter" else 0)
            for number in range(count):
                path = folder / f"{kind}_3mm" / f"{patient}_{count - number:03d}.IMA"
                write_slice(path, content[f"{kind}/{patient}"][number], number + 1, scanner=f"CT{int(patient[1:]) % 2}")
    return content
