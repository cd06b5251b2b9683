"""Low-dose CT: series read as written, noise as physics has it, metrics as defined, and a student that denoises."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from phantoms import phantom, write_patients, write_slice

from fedkd_mpi import costlog, models
from fedkd_mpi.config.load import load as configure
from fedkd_mpi.datasets import checks, load
from fedkd_mpi.errors import UserError
from fedkd_mpi.models import Output
from fedkd_mpi.run import main
from fedkd_mpi.tasks.denoising import Denoising

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed (extra ct)")
metrics = pytest.importorskip("skimage.metrics", reason="scikit-image is not installed (extra ct)")

OPTIONS = configure(overrides=["data={name: mayo_ct, test_patients: [L003], patch: 32}"]).data.options()


def read(root: Path, **options: object):
    return load("mayo_ct", root, 0, {**OPTIONS, **options})


def test_series_are_read_as_written_in_the_order_of_their_slices(tmp_path: Path):
    content = write_patients(tmp_path, {"L001": 2, "L002": 3, "L003": 2}, ("full", "quarter"))
    data = read(tmp_path)
    assert data.train["x"].dtype == np.int16
    for key, kind in (("y", "full"), ("x", "quarter")):
        assert np.array_equal(data.test[key][:, 0], content[f"{kind}/L003"])
        slices = np.concatenate([content[f"{kind}/L001"], content[f"{kind}/L002"]])
        corners = [image[top : top + 32, left : left + 32] for image in slices for top in (0, 32) for left in (0, 32)]
        assert np.array_equal(data.train[key][:, 0], np.stack(corners))
    assert data.train["group"].tolist() == [0] * 8 + [1] * 12
    assert data.meta == {"window": [-160, 240], "owners": ["L001", "L002"]}
    by_scanner = read(tmp_path, owner="scanner", test_patients=["L002"])
    assert by_scanner.meta["owners"] == ["SIEMENS CT1"]
    assert by_scanner.train["group"].tolist() == [0] * 16


def test_the_simulated_noise_is_none_of_the_image_and_falls_with_the_dose():
    from fedkd_mpi.datasets.low_dose import low_dose

    image = phantom(np.random.default_rng(0))
    noise = {}
    for photons in (1e3, 4e3, 1e9):
        draws = [low_dose(image, 5.0, photons, 90, np.random.default_rng(seed)) - image for seed in range(12)]
        noise[photons] = np.stack(draws).astype(float)
    assert np.abs(noise[1e9]).max() <= 3  # with light enough nothing changes
    body = image > -500
    mean, std = noise[4e3].mean(0)[body], noise[4e3].std(0)[body]
    assert np.abs(mean).mean() < 0.5 * std.mean()  # a mean over 12 draws of independent noise: 0.23 of its std
    quarter = noise[1e3][:, body].std() / noise[4e3][:, body].std()
    assert quarter == pytest.approx(2, rel=0.25)  # Poisson: a quarter of the photons, twice the noise


def ssim(a: np.ndarray, b: np.ndarray, window: np.ndarray, unbiased: float = 1.0) -> float:
    """Wang et al. 2004, equation 13 for a range of 1, as a plain loop over the places where the window fits."""
    size, weights, values = len(window), window / window.sum(), []
    for row in range(a.shape[0] - size + 1):
        for column in range(a.shape[1] - size + 1):
            x, y = (image[row : row + size, column : column + size] for image in (a, b))
            mean_x, mean_y = (weights * x).sum(), (weights * y).sum()
            spread = unbiased * ((weights * (x - mean_x) ** 2).sum() + (weights * (y - mean_y) ** 2).sum())
            common = unbiased * (weights * (x - mean_x) * (y - mean_y)).sum()
            top = (2 * mean_x * mean_y + 0.01**2) * (2 * common + 0.03**2)
            values.append(top / ((mean_x**2 + mean_y**2 + 0.01**2) * (spread + 0.03**2)))
    return float(np.mean(values))


def test_metrics_are_those_of_their_definitions():
    rng = np.random.default_rng(0)
    y = rng.integers(-160, 240, (3, 1, 16, 16)).astype(np.int16)
    x = (y + rng.integers(-80, 80, y.shape)).astype(np.int16)
    y[2] = x[2] = -1000  # air alone: no signal, left out of every mean
    task = Denoising({"window": [-160, 240]}, {"x": x, "y": y})
    batch = task.prepare({"x": x, "y": y}, np.arange(3), "cpu")
    assert (batch["x"].min(), batch["x"].max()) == (0, 1)
    output = (batch["x"] + 2 * batch["y"]) / 3
    scores = task.finish(task.score(Output(output), batch))
    clean, noisy, better = (np.clip(t.numpy().astype(np.float64), 0, 1) for t in (batch["y"], batch["x"], output))
    psnr, before = (
        [10 * np.log10(1 / ((a - b) ** 2).mean()) for a, b in zip(clean[:2], image[:2], strict=True)]
        for image in (better, noisy)
    )
    assert scores["psnr"] == pytest.approx(sum(psnr) / 2)
    assert scores["psnr_gain"] == pytest.approx(sum(psnr) / 2 - sum(before) / 2)
    assert scores["psnr_gain"] == pytest.approx(20 * np.log10(3))  # a third of the error is left
    assert scores["rmse"] == pytest.approx(400 * np.sqrt(((better - clean)[:2] ** 2).mean(axis=(1, 2, 3))).mean())
    images = list(zip(clean[:2, 0], better[:2, 0], strict=True))
    taps = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    assert scores["ssim"] == pytest.approx(np.mean([ssim(*pair, np.outer(taps, taps)) for pair in images]))
    even = np.mean([ssim(*pair, np.ones((7, 7)), unbiased=49 / 48) for pair in images])
    assert scores["ssim_uniform"] == pytest.approx(even)
    assert all(np.isnan(value) for value in task.finish(np.zeros(task.sums)).values())


def test_scores_of_the_range_and_of_the_window_are_side_by_side():
    rng = np.random.default_rng(0)
    y = rng.integers(-1024, 3072, (2, 1, 24, 24)).astype(np.int16)
    x = np.clip(y + rng.integers(-300, 300, y.shape), -1024, 3071).astype(np.int16)
    task = Denoising({"window": [-160, 240], "range": [-1024, 3072]}, {"x": x, "y": y})
    batch = task.prepare({"x": x, "y": y}, np.arange(2), "cpu")
    scores = task.finish(task.score(Output(batch["x"]), batch))
    for suffix, (low, high) in (("", (-160, 240)), ("_full", (-1024, 3072))):
        # From 0 on, because SSIM compares means as well.
        pairs = [[np.clip(image[i, 0].astype(float), low, high) - low for image in (y, x)] for i in range(2)]
        width = high - low
        expected = {
            "psnr": [metrics.peak_signal_noise_ratio(*pair, data_range=width) for pair in pairs],
            "rmse": [np.sqrt(((pair[0] - pair[1]) ** 2).mean()) for pair in pairs],
            "ssim_uniform": [metrics.structural_similarity(*pair, data_range=width) for pair in pairs],
            "ssim": [
                metrics.structural_similarity(
                    *pair, data_range=width, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
                )
                for pair in pairs
            ],
        }
        for name, values in expected.items():
            assert scores[f"{name}{suffix}"] == pytest.approx(np.mean(values), rel=1e-4), name
    assert scores["psnr_gain"] == 0
    alone = Denoising({"window": [-160, 240]}, {"x": x, "y": y})
    same = alone.finish(alone.score(Output(batch["x"]), alone.prepare({"x": x, "y": y}, np.arange(2), "cpu")))
    assert [same[f"{name}_full"] for name in ("psnr", "ssim", "rmse")] == [same[k] for k in ("psnr", "ssim", "rmse")]


def test_pairs_below_the_window_of_ssim_are_refused():
    small = {key: np.zeros((2, 1, 12, 10), np.int16) for key in "xy"}
    with pytest.raises(UserError, match="SSIM needs images of 11 pixels per side"):
        checks.check_pairs("own", small, small, {"window": [-160, 240]})


def test_redcnn_has_its_published_size_and_starts_as_the_identity():
    net = models.build("redcnn", (1, 64, 64), 0, {})
    weights = 96 * 25 + 96 + 4 * (96 * 96 * 25 + 96) + 4 * (96 * 96 * 25 + 96) + 96 * 25 + 1
    assert sum(p.numel() for p in net.parameters()) == weights
    small = models.build("redcnn", (1, 16, 16), 0, {"width": 4, "depth": 3, "kernel_size": 3})
    x = torch.rand(2, 1, 23, 40, generator=torch.Generator().manual_seed(0))
    output = small(x)
    assert torch.equal(output.logits, x)
    assert [tuple(hidden.shape) for hidden in output.hidden] == [(2, 4)] * 3
    with pytest.raises(UserError, match="21 pixels per side"):
        models.build("redcnn", (1, 20, 64), 0, {})


def test_the_federated_student_takes_3_decibels_of_the_noise_away(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    write_patients(tmp_path, {"L001": 6, "L002": 6, "L003": 3, "L004": 6})
    log = tmp_path / "ct.h5"
    preset = [
        "--config",
        "benchmarks/ct.yaml",
        f"data.root={tmp_path}",
        "data.test_patients=[L003]",
        "data.photons=3e3",
    ]
    small = [
        *("data.patch=32", "data.angles=90", "num_clients=3", "rounds=4", "device=cpu", "local.steps=20"),
        *("teacher={name: redcnn, width: 16, depth: 3, kernel_size: 3, learning_rate: 0.005}", "checkpoint.every=null"),
        *(
            "student={name: redcnn, width: 8, depth: 3, kernel_size: 3, learning_rate: 0.005}",
            "local.batch_size=8",
            "evaluate.every=1",
        ),
    ]
    assert main([*preset, *small, "--output", str(log)]) == 0
    rounds = costlog.read(log)["rounds"]
    assert rounds["global_student_psnr_gain"][-1] > 3
    assert rounds["teacher_psnr_gain"][-1] > 3
    assert rounds["global_student_rmse"][-1] < rounds["global_student_rmse"][0]
    assert "global student, global test set: psnr" in capfd.readouterr().out


def spoil(path: Path, **changes: object) -> None:
    """Write a DICOM file anew with some elements changed, or without those that are None."""
    data = pydicom.dcmread(path)
    for name, value in changes.items():
        if value is None:
            delattr(data, name)
        else:
            setattr(data, name, value)
    data.save_as(path)


FILE = "full_3mm/L001/full_3mm/L001_001.IMA"
MALFORMED = {
    "no pixels": (FILE, lambda path: spoil(path, PixelData=None), "a DICOM file without PixelData"),
    "no scale": (FILE, lambda path: spoil(path, RescaleSlope=None), "a DICOM file without RescaleSlope"),
    "cut": (FILE, lambda path: path.write_bytes(path.read_bytes()[:-500]), "not a whole DICOM slice"),
    "text": (FILE, lambda path: path.write_text("no DICOM"), "not a whole DICOM slice"),
    "empty": (FILE, lambda path: path.write_bytes(b""), "not a whole DICOM slice"),
    "number twice": (
        FILE.replace("001.", "002."),
        lambda path: spoil(path, InstanceNumber=2),
        "InstanceNumber 2 is that",
    ),
    "other size": (FILE, lambda path: write_slice(path, np.zeros((32, 32)), 2), "(32, 32)"),
    "other scanner": (FILE, lambda path: spoil(path, ManufacturerModelName="X"), "more than one series"),
    "a slice less": ("quarter_3mm/L001/quarter_3mm/L001_002.IMA", Path.unlink, "has none there (1 and 2 slices)"),
    "no slices": ("quarter_3mm/L003", lambda path: [file.unlink() for file in path.rglob("*.IMA")], "no DICOM files"),
    "no counterpart": (
        "quarter_3mm/L001",
        lambda path: path.rename(path.parent.parent / "gone"),
        "no such folder, the low-dose",
    ),
    "no quarter dose": ("quarter_3mm", lambda path: path.rename(path.parent / "gone"), "set data.photons"),
    "no full dose": ("full_3mm", lambda path: path.rename(path.parent / "gone"), "No such file"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_series_are_one_line_naming_the_file(tmp_path: Path, case: str):
    name, damage, words = MALFORMED[case]
    write_patients(tmp_path, {"L001": 2, "L003": 1}, ("full", "quarter"))
    damage(tmp_path / "mayo-2016" / name)
    with pytest.raises(UserError) as caught:
        read(tmp_path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    exact = "InstanceNumber" in words or words.startswith(("a DICOM", "not a whole"))
    place = Path(name) if exact else Path(*Path(name).parts[:2])  # the file, or its patient's folder
    assert str(tmp_path / "mayo-2016" / place) in str(caught.value)


def test_wrong_patients_and_options_are_refused(tmp_path: Path):
    write_patients(tmp_path, {"L001": 1, "L003": 1}, ("full", "quarter"))
    for options, words in (
        ({"test_patients": ["L009"]}, "has L001, L003"),
        ({"test_patients": ["L001", "L003"]}, "one of them to train on"),
        ({"patch": 65}, "hold no patch of 65"),
    ):
        with pytest.raises(UserError, match=words):
            read(tmp_path, **options)
    for override, words in (("data.windw=3", "did you mean data.window"), ("data.window=[9,3]", "the lower first")):
        with pytest.raises(UserError, match=words):
            configure(overrides=["data={name: mayo_ct}", override])
