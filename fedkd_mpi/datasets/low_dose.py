"""Low-dose CT simulated in the projection domain."""

from __future__ import annotations

import numpy as np

from fedkd_mpi.errors import UserError

WATER = 0.02  # attenuation of water at about 70 keV, per mm
AIR_HU = -1000


def low_dose(image: np.ndarray, pixel: float, photons: float, angles: int, rng: np.random.Generator) -> np.ndarray:
    """Return a slice (HU [H, W], int16) with the noise of a scan with `photons` photons per ray.

    The slice is projected at `angles` angles. The count of each ray is drawn from Poisson(photons exp(-line integral)).
    The change of the filtered back projection by this noise is added to the slice. `pixel` is the pixel size in mm.
    Raises UserError without scikit-image.
    """
    try:
        from skimage.transform import iradon, radon
    except ImportError:
        raise UserError("data.photons needs scikit-image: pip install 'fedkd-mpi[ct]'") from None
    attenuation = np.clip(image.astype(np.float64) - AIR_HU, 0, None) * (WATER * pixel / -AIR_HU)
    theta = np.linspace(0, 180, angles, endpoint=False)
    clean = radon(attenuation, theta, circle=False)
    counts = np.maximum(rng.poisson(photons * np.exp(-clean)), 1)  # a count of 0 is replaced by 1 for the logarithm
    noise = iradon(-np.log(counts / photons) - clean, theta, output_size=max(image.shape), circle=False)
    top, left = ((max(image.shape) - side) // 2 for side in image.shape)
    noise = noise[top : top + image.shape[0], left : left + image.shape[1]] * (-AIR_HU / (WATER * pixel))
    return np.clip(np.round(image + noise), -32768, 32767).astype(np.int16)
