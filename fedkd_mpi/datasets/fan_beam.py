"""Scans of a slice by a scanner of its own geometry: a fan of rays on a flat detector, all around the patient.

The fan is projected by astra-toolbox. Without it, scikit-image projects parallel rays with as many views.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import NamedTuple

import numpy as np

from fedkd_mpi.datasets.low_dose import AIR_HU, WATER
from fedkd_mpi.errors import UserError


class FanBeam(NamedTuple):
    """A scanner for slices of `side` x `side` pixels; lengths are in mm.

    `views` are equally spaced over 360 degrees. `source` and `detector` are the distances of both from the centre, and
    `spacing` is that of the detector's elements. A detector that the fan of the slice exceeds cuts it off.
    """

    side: int
    pixel: float
    views: int
    detectors: int
    spacing: float
    source: float
    detector: float

    def angles(self) -> np.ndarray:
        """Return the angle of every view, float64 [views]."""
        return np.linspace(0, 2 * np.pi, self.views, endpoint=False)

    def project(self, image: np.ndarray) -> np.ndarray:
        """Return the line integrals of an image per mm, float64 [views, detectors]."""
        import astra

        lengths = (self.spacing / self.pixel, self.detectors, self.angles())
        rays = astra.create_proj_geom("fanflat", *lengths, self.source / self.pixel, self.detector / self.pixel)
        projector = astra.create_projector("line_fanflat", rays, astra.create_vol_geom(self.side, self.side))
        try:
            number, sinogram = astra.create_sino(np.ascontiguousarray(image, np.float32), projector)
            astra.data2d.delete(number)
        finally:
            astra.projector.delete(projector)
        return np.asarray(sinogram, np.float64) * self.pixel

    def reconstruct(self, sinogram: np.ndarray) -> np.ndarray:
        """Return the filtered back projection of line integrals, per mm, float64 [side, side].

        Source: Kak and Slaney 1988, Principles of Computerized Tomographic Imaging, section 3.4.2.
        """
        step = self.spacing * self.source / (self.source + self.detector)  # on a detector moved to the centre
        places = (np.arange(self.detectors) - (self.detectors - 1) / 2) * step
        filtered = _ramp(sinogram * (self.source / np.hypot(self.source, places)), step)
        row, column = np.mgrid[: self.side, : self.side] - (self.side - 1) / 2
        x, y = column * self.pixel, -row * self.pixel
        image = np.zeros((self.side, self.side))
        for angle, view in zip(self.angles(), filtered, strict=True):
            depth = self.source + y * np.cos(angle) - x * np.sin(angle)
            at = (x * np.cos(angle) + y * np.sin(angle)) * (self.source / step) / depth + (self.detectors - 1) / 2
            left = np.clip(np.floor(at), 0, self.detectors - 2).astype(np.int64)
            share = np.clip(at - left, 0, 1)
            seen = (at >= 0) & (at <= self.detectors - 1)
            image += seen * (self.source / depth) ** 2 * (view[left] * (1 - share) + view[left + 1] * share)
        return image * (np.pi / self.views)


def scan(image: np.ndarray, geometry: FanBeam, photons: float, rng: np.random.Generator) -> np.ndarray:
    """Return what a scanner makes of a slice, HU int16 [side, side]: projected, counted by Poisson, reconstructed.

    Raises UserError without scikit-image where astra-toolbox is missing.
    """
    attenuation = np.clip(image.astype(np.float64) - AIR_HU, 0, None) * (WATER / -AIR_HU)
    if has_astra():
        sinogram = counted(geometry.project(attenuation), photons, rng)
        found = geometry.reconstruct(sinogram)
    else:
        found = _parallel(attenuation, geometry, photons, rng)
    return np.clip(np.round(found * (-AIR_HU / WATER) + AIR_HU), -32768, 32767).astype(np.int16)


def has_astra() -> bool:
    """Whether fans are projected, rather than parallel rays."""
    return find_spec("astra") is not None


def counted(sinogram: np.ndarray, photons: float, rng: np.random.Generator) -> np.ndarray:
    """Return line integrals as they are measured with so many photons per ray."""
    counts = np.maximum(rng.poisson(photons * np.exp(-sinogram)), 1)  # a count of 0 is replaced by 1 for the logarithm
    return -np.log(counts / photons)


def _parallel(attenuation: np.ndarray, geometry: FanBeam, photons: float, rng: np.random.Generator) -> np.ndarray:
    try:
        from skimage.transform import iradon, radon
    except ImportError:
        raise UserError("data.scanners needs astra-toolbox: pip install 'fedkd-mpi[ct]'") from None
    theta = np.linspace(0, 180, geometry.views, endpoint=False)
    sinogram = counted(radon(attenuation, theta, circle=False) * geometry.pixel, photons, rng)
    return np.asarray(iradon(sinogram, theta, output_size=geometry.side, circle=False)) / geometry.pixel


def _ramp(views: np.ndarray, step: float) -> np.ndarray:
    """Return views [n, detectors], each convolved with the ramp filter of samples that are `step` apart."""
    count = views.shape[1]
    length = 1 << (2 * count - 1).bit_length()
    distance = np.minimum(np.arange(length), length - np.arange(length))
    kernel = np.zeros(length)
    kernel[distance % 2 == 1] = -1 / (np.pi * distance[distance % 2 == 1] * step) ** 2
    kernel[0] = 1 / (2 * step) ** 2
    spectrum = np.fft.rfft(views, length, axis=1) * np.fft.rfft(kernel)
    return np.fft.irfft(spectrum, length, axis=1)[:, :count] * step
