"""Scanners as clients of low-dose CT: a fan of rays against the chords of a disc, Poisson noise, who holds what."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from phantoms import write_patients

from fedkd_mpi.config.load import load as configure
from fedkd_mpi.datasets import fan_beam, load
from fedkd_mpi.datasets.fan_beam import FanBeam
from fedkd_mpi.datasets.scanners import shrunk
from fedkd_mpi.errors import UserError

GEOMETRY = FanBeam(128, 2.66, 180, 184, 5.1432, 595, 490.6)
RADIUS, X, Y = 100.0, 20.0, 10.0  # of a disc, in mm from the centre; y is upwards
TABLE = [
    {"views": 60, "detectors": 64, "spacing": 12.0, "source": 595.0, "detector": 490.6, "photons": 1e5},
    {"views": 40, "detectors": 50, "spacing": 15.0, "source": 450.0, "detector": 350.0, "photons": 1e5, "pixel": 5.5},
]
needs_astra = pytest.mark.skipif(find_spec("astra") is None, reason="astra-toolbox is not installed (extra ct)")


def distance(geometry: FanBeam) -> np.ndarray:
    """Return the distance of every pixel from the centre of the disc."""
    row, column = (np.mgrid[: geometry.side, : geometry.side] - (geometry.side - 1) / 2) * geometry.pixel
    return np.hypot(column - X, -row - Y)


def chords(geometry: FanBeam) -> np.ndarray:
    """Return the length of every ray within the disc: [views, detectors]."""
    turn = np.linspace(0, 2 * np.pi, geometry.views, endpoint=False)[:, None]
    place = (np.arange(geometry.detectors) - (geometry.detectors - 1) / 2) * geometry.spacing
    start = geometry.source * np.sin(turn), -geometry.source * np.cos(turn)
    end = (
        -geometry.detector * np.sin(turn) + place * np.cos(turn),
        geometry.detector * np.cos(turn) + place * np.sin(turn),
    )
    along = end[0] - start[0], end[1] - start[1]
    off = np.abs(along[0] * (start[1] - Y) - (start[0] - X) * along[1]) / np.hypot(*along)
    return 2 * np.sqrt(np.clip(RADIUS**2 - off**2, 0, None))


@needs_astra
def test_a_fan_s_line_integrals_are_the_chords_of_a_disc():
    exact, found = chords(GEOMETRY), GEOMETRY.project((distance(GEOMETRY) < RADIUS).astype(float))
    assert found.shape == (180, 184)
    assert np.abs(found - exact).mean() < 0.01 * exact.max()  # pixels at the rim are wholly in or out
    assert np.abs(found - exact)[exact > RADIUS].max() < 4 * GEOMETRY.pixel


def test_chords_of_a_disc_are_reconstructed_to_the_disc():
    image, away = GEOMETRY.reconstruct(0.02 * chords(GEOMETRY)), distance(GEOMETRY)
    assert image[away < 0.9 * RADIUS] == pytest.approx(0.02, rel=0.02)
    assert image[away < 0.9 * RADIUS].mean() == pytest.approx(0.02, rel=1e-3)
    assert np.abs(image[(away > 1.1 * RADIUS) & (away < 1.5 * RADIUS)]).mean() < 0.02 * 0.02


def test_counts_are_poisson_s():
    sinogram = np.full((400, 500), 3.0)
    noise = fan_beam.counted(sinogram, 5e4, np.random.default_rng(0)) - sinogram
    assert noise.std() == pytest.approx(1 / np.sqrt(5e4 * np.exp(-3.0)), rel=0.02)
    assert abs(noise.mean()) < 1e-3


@needs_astra
def test_a_scan_of_water_has_its_hounsfield_units_and_less_noise_with_more_photons():
    away, noise = distance(GEOMETRY), []
    water = np.where(away < RADIUS, 0, -1000).astype(np.int16)
    for photons in (1e4, 1e6):
        image = fan_beam.scan(water, GEOMETRY, photons, np.random.default_rng(0))[away < 0.8 * RADIUS]
        assert abs(image.mean()) < 10
        noise.append(image.std())
    assert noise[0] > 3 * noise[1]


def test_slices_are_means_over_squares_or_refused():
    slices = np.arange(32, dtype=np.int16).reshape(2, 4, 4)
    small, pixel = shrunk(slices, 0.7, 2, Path("L001"))
    assert small.tolist() == [[[2, 4], [10, 12]], [[18, 20], [26, 28]]]  # 2.5, 4.5, ... to the even number
    assert pixel == 1.4
    with pytest.raises(UserError, match=r"L001: slices of 4 x 4 pixels cannot be divided into data\.size=3"):
        shrunk(slices, 0.7, 3, Path("L001"))


@pytest.mark.parametrize("astra", [pytest.param(True, marks=needs_astra), False])
def test_patients_have_scanners_in_turn_and_test_slices_too(tmp_path: Path, monkeypatch, astra: bool):
    pytest.importorskip("pydicom", reason="pydicom is not installed (extra ct)")
    pytest.importorskip("skimage", reason="scikit-image is not installed (extra ct)")
    monkeypatch.setattr(fan_beam, "has_astra", lambda: astra)
    write_patients(tmp_path, {"L001": 2, "L002": 1, "L003": 1, "L004": 2})
    options = configure(overrides=["data={name: mayo_ct, test_patients: [L004], size: 32, patch: 32}"]).data.options()
    data = load("mayo_ct", tmp_path, 0, {**options, "scanners": TABLE, "range": [-1024, 3072]})
    assert data.meta["owners"] == ["scanner 1", "scanner 2"]
    assert data.train["group"].tolist() == [0, 0, 1, 0]
    assert data.train["x"].shape == (4, 1, 32, 32)
    assert data.meta["range"] == [-1024, 3072]
    assert ("rays are parallel" in "".join(data.meta.get("notes", ()))) != astra
    error = (data.train["x"].astype(float) - data.train["y"])[data.train["y"] > -500]
    assert 0 < error.std() < 400
    with pytest.raises(UserError, match="has 4 scanners for 3 patients to train on"):
        load("mayo_ct", tmp_path, 0, {**options, "scanners": TABLE * 2})
    for wrong, words in (("photons=1e5", "photons of their own"), ("range=[0, 100]", "must contain data.window")):
        table = "[{views: 9, detectors: 9, spacing: 1, source: 9, detector: 9, photons: 9}]"
        with pytest.raises(UserError, match=words):
            configure(overrides=[f"data={{name: mayo_ct, scanners: {table}}}", f"data.{wrong}"])
