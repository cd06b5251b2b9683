"""Denoising of CT slices, a regression: squared error instead of cross-entropy and KL; PSNR, SSIM and RMSE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedkd_mpi.datasets import checks
from fedkd_mpi.distillation import squared_error
from fedkd_mpi.errors import UserError
from fedkd_mpi.models.output import Output
from fedkd_mpi.tasks.augmentation import random_flips
from fedkd_mpi.tasks.reading import as_batch

WANG: dict[str, Any] = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}  # 2004, section III
MOST_DECIBELS = 100.0  # PSNR of an image without error, so that the mean over images is finite
PIXELS_AT_ONCE = 2**19  # in evaluation, in which a batch may consist of complete slices


class Denoising:
    """Samples are "x" (noisy) and "y" (clean), HU [n, 1, H, W]; meta has the window of HU, perhaps a wider range.

    The range, or else the window, is scaled to 0..1 for the networks. Metrics are means over images of scikit-image's
    results for the output, clipped to the window: psnr (dB) and ssim within the window, rmse in HU. psnr_gain is the
    difference of psnr to that of the noisy input in dB. ssim has the Gaussian weights of Wang et al. 2004 (11 pixels,
    sigma 1.5), ssim_uniform has uniform weights of 7 pixels. Those that end in _full are of the range instead of the
    window. Images whose clean pixels are constant within the window (only air) have no signal and are omitted.
    """

    metrics = (
        *("psnr", "ssim", "ssim_uniform", "rmse", "psnr_gain"),
        *("psnr_full", "ssim_full", "ssim_uniform_full", "rmse_full"),
    )
    lower_is_better = ("rmse", "rmse_full")
    sums = len(metrics) + 1  # sum of each metric; number of images
    num_classes = 0
    check = staticmethod(checks.check_pairs)

    def __init__(self, meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray]):
        try:
            import skimage.metrics  # noqa: F401  imported here, so that a run does not fail after its first round
        except ImportError:
            raise UserError("task=denoising needs scikit-image for its scores: pip install 'fedkd-mpi[ct]'") from None
        self.input_shape = tuple(arrays["x"].shape[1:])
        self._low, high = meta.get("range", meta["window"])
        self._width = high - self._low
        self._window = tuple((hounsfield - self._low) / self._width for hounsfield in meta["window"])

    def labels(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the owner of every sample, because there are no classes."""
        return arrays["group"] if "group" in arrays else np.zeros(len(arrays["x"]), np.int64)

    def prepare(self, arrays: Mapping[str, np.ndarray], indices: np.ndarray, device: str) -> dict[str, Tensor]:
        return {key: self._scaled(torch.from_numpy(arrays[key][indices]).to(device)) for key in "xy"}

    def preprocess(self, raw: Any) -> Tensor:
        """Return HU [N, 1, H, W] of any size as the network takes them: the range as 0..1, what lies outside cut off.

        The network's output, cut off likewise, is low + width * output in HU.
        """
        return self._scaled(as_batch(raw, (*self.input_shape[:1], None, None)))

    def _scaled(self, hounsfield: Tensor) -> Tensor:
        return hounsfield.float().sub(self._low).div_(self._width).clamp_(0, 1)

    def augment(self, batch: dict[str, Tensor], rng: np.random.Generator) -> dict[str, Tensor]:
        """Return the pairs randomly mirrored left-right and top-bottom."""
        x, y = random_flips([batch["x"], batch["y"]], rng)
        return {"x": x, "y": y}

    def predict(self, model: nn.Module, batch: dict[str, Tensor]) -> Output:
        x = batch["x"]
        if model.training:
            return model(x)
        parts = x.split(max(1, PIXELS_AT_ONCE // x[0].numel()))
        if len(parts) == 1:
            return model(x)
        return Output(torch.cat([model(part).logits for part in parts]))

    def loss(self, output: Output, batch: dict[str, Tensor]) -> Tensor:
        return functional.mse_loss(output.logits, batch["y"])

    def distance(self, reference: Output, output: Output, batch: dict[str, Tensor]) -> Tensor:
        return squared_error(reference.logits, output.logits)

    def score(self, output: Output, batch: dict[str, Tensor]) -> np.ndarray:
        images = (output.logits.float().clamp(0, 1), batch["y"], batch["x"])
        sums = np.zeros(self.sums)
        low, high = self._window
        for whole in zip(*(image[:, 0].cpu().numpy().astype(np.float64) for image in images), strict=True):
            denoised, clean, noisy = whole
            if (low, high) != (0.0, 1.0):
                denoised, clean, noisy = (np.clip((image - low) / (high - low), 0, 1) for image in whole)
            if clean.min() == clean.max():
                continue  # only air within the window: no signal, and the PSNR of the input is unbounded
            within = _scores(clean, denoised, (high - low) * self._width)
            full = within if (low, high) == (0.0, 1.0) else _scores(whole[1], whole[0], self._width)
            sums += *within, within[0] - _psnr(clean, noisy), *full, 1
        return sums

    def finish(self, sums: np.ndarray) -> dict[str, float]:
        *totals, seen = sums
        return {name: total / seen if seen else float("nan") for name, total in zip(self.metrics, totals, strict=True)}


def _scores(clean: np.ndarray, denoised: np.ndarray, width: float) -> tuple[float, float, float, float]:
    """Return psnr, ssim, ssim_uniform and rmse of an image of 0..1, which is `width` HU."""
    from skimage.metrics import mean_squared_error, structural_similarity

    ssim = structural_similarity(clean, denoised, data_range=1.0, **WANG)
    uniform = structural_similarity(clean, denoised, data_range=1.0)
    return _psnr(clean, denoised), ssim, uniform, width * mean_squared_error(clean, denoised) ** 0.5


def _psnr(clean: np.ndarray, other: np.ndarray) -> float:
    from skimage.metrics import peak_signal_noise_ratio

    with np.errstate(divide="ignore"):
        return min(float(peak_signal_noise_ratio(clean, other, data_range=1.0)), MOST_DECIBELS)
