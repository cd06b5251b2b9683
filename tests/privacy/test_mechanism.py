"""Clipping and noise, against dense float64 and the formula of the noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from fedkd_mpi.privacy.mechanism import Mechanism

SHAPES = [(40, 30), (7,), (5, 4, 3, 3)]


def flat(scale: float, seed: int) -> torch.Tensor:
    return scale * torch.randn(
        sum(int(np.prod(shape)) for shape in SHAPES), generator=torch.Generator().manual_seed(seed)
    )


@pytest.mark.parametrize("scale", [1e-20, 1e-3, 1.0, 1e15])
@pytest.mark.parametrize("clip", [1e-6, 0.7, 3e4])
def test_a_clipped_update_is_not_longer_than_c_and_keeps_its_direction(scale: float, clip: float) -> None:
    for seed in range(20):
        update = flat(scale, seed)
        before = update.double().numpy().copy()
        norm = Mechanism(clip, 1.0, False, 0).on_update(update, [], 0, 0)
        exact = np.linalg.norm(before)
        assert norm == pytest.approx(exact, rel=1e-12)
        after = update.double().numpy()
        assert np.linalg.norm(after) <= clip or exact <= clip
        if exact <= clip:
            assert after.tobytes() == before.tobytes()
        else:
            assert np.abs(after - before * clip / exact).max() <= 1e-6 * np.abs(before * clip / exact).max()


def test_a_decoded_message_is_not_longer_than_c() -> None:
    mechanism = Mechanism(0.5, 1.0, False, 0)
    for seed in range(20):
        decoded = [
            part.reshape(shape) for part, shape in zip(flat(1.0, seed).split([1200, 7, 180]), SHAPES, strict=True)
        ]
        bounded = mechanism.bounded(decoded)
        whole = torch.cat([part.reshape(-1) for part in bounded])
        assert whole.dtype == torch.float64
        assert float(whole.norm()) == pytest.approx(0.5, rel=1e-14)
    small = [torch.full((3,), 1e-3)]
    assert torch.equal(mechanism.bounded(small)[0], small[0].double())
    assert not mechanism.bounded([torch.zeros(3)])[0].any()
    with pytest.raises(ValueError, match="not finite"):
        mechanism.bounded([torch.tensor([float("inf"), 1.0])])


@pytest.mark.parametrize("at_clients", [False, True])
def test_the_noise_is_normal_with_deviation_z_c_and_independent(at_clients: bool) -> None:
    mechanism = Mechanism(0.25, 1.6, at_clients, 7)
    keys = [(index // 3, index % 3) if at_clients else (index,) for index in range(20)]
    rows = []
    for key in keys:
        parts = [torch.zeros(50, 20), torch.zeros(17)]
        mechanism.add_noise(parts, *key)
        rows.append(torch.cat([part.reshape(-1) for part in parts]).numpy())
    noise = np.array(rows, np.float64)
    assert kstest(noise.reshape(-1) / 0.4, "norm").pvalue > 1e-3
    per_number = noise.var(axis=0, ddof=1) / 0.16  # of 20 draws each: chi-squared with 19 degrees of freedom
    assert per_number.mean() == pytest.approx(1, abs=5 * np.sqrt(2 / 19 / per_number.size))
    between = np.corrcoef(noise)[np.triu_indices(20, 1)]
    assert np.abs(between).max() < 5 / np.sqrt(noise.shape[1])


def test_streams_belong_to_seed_round_and_client() -> None:
    def drawn(seed: int, *key: int) -> bytes:
        part = torch.zeros(64, dtype=torch.float64)
        Mechanism(1.0, 1.0, True, seed).add_noise([part], *key)
        return part.numpy().tobytes()

    keys = [(0, 0), (0, 1), (1, 0), (1, 1), (0,), (1,)]
    assert len({drawn(seed, *key) for seed in (0, 1) for key in keys}) == 12
    assert drawn(3, 1, 2) == drawn(3, 1, 2)


def test_noise_to_signal_is_that_of_the_mean() -> None:
    at_server, at_clients = Mechanism(0.5, 3.8, False, 0), Mechanism(0.5, 3.8, True, 0)
    assert at_server.noise_to_signal(37610, 32) == pytest.approx(3.8 * 37610**0.5 / 32)
    assert at_clients.noise_to_signal(37610, 32) == pytest.approx(3.8 * 37610**0.5 / 32**0.5)
