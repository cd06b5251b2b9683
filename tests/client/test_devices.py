"""What a GPU computes is what the CPU does, within rounding."""

from __future__ import annotations

import pytest
import torch
from codec_tools import encode, make
from matrices import MATRICES, energy, random, smallest_ranks, with_spectrum
from simulate import play

from fedkd_mpi.codecs import CODECS
from fedkd_mpi.codecs.staging import to_device, to_host
from fedkd_mpi.common.torch_streams import torch_scope
from fedkd_mpi.linalg.low_rank import exact_each, fast

if not torch.cuda.is_available():
    pytest.skip("torch sees no GPU", allow_module_level=True)

pytestmark = pytest.mark.gpu
DEVICE = "cuda:0"
FALLING = [with_spectrum([0.8**j for j in range(40)], 40, 90, seed) for seed in range(3)]
UPDATE = [*FALLING[:2], random(16, 40).reshape(16, 5, 8), random(1, 37)[0], torch.zeros(30, 20)]


@pytest.mark.parametrize("threshold", [0.9, 0.98])
def test_factors(threshold: float):
    matrices = [*FALLING, FALLING[0].T, *MATRICES.values()]
    found = exact_each([matrix.to(DEVICE) for matrix in matrices], threshold)
    for matrix, factors in zip(matrices, found, strict=True):
        assert factors.left.device == factors.right.device == torch.device(DEVICE)
        assert factors.rank in smallest_ranks(matrix, threshold, tie=1e-6)
        assert energy(matrix, (factors.left.double() @ factors.right.double()).cpu()) > threshold - 1e-6


def test_factors_from_a_warm_start():
    before, matrix = (with_spectrum([0.7**j for j in range(96)], 96, 200, 1) + random(96, 200, s) for s in (1e-4, 2e-4))
    start = exact_each([before.to(DEVICE)], 0.95)[0].left
    factors = fast(matrix.to(DEVICE), 0.95, start)
    assert energy(matrix, (factors.left @ factors.right).cpu()) > 0.95 - 1e-6
    assert factors.rank <= smallest_ranks(matrix, 0.95)[-1] + 1


@pytest.mark.parametrize("codec", CODECS)
def test_codecs(codec: str):
    sent = [encode(make(codec, *UPDATE), *(tensor.to(place) for tensor in UPDATE)) for place in ("cpu", DEVICE)]
    there = make(codec, *UPDATE)
    on_cpu, elsewhere = (make(codec, *UPDATE).decode(records, "cpu") for records in sent)
    for layer, one, other in zip(there.layers, on_cpu, elsewhere, strict=False):
        scale = float(one.abs().max()) or 1.0
        assert energy(one / scale, other / scale) > 0.98, layer.name  # single numbers may be rounded the other way
    assert sum(record.data.size for record in sent[1]) == pytest.approx(sum(r.data.size for r in sent[0]), rel=0.02)
    for one, other in zip(on_cpu, there.decode(sent[0], DEVICE), strict=True):
        assert other.device == torch.device(DEVICE)
        torch.testing.assert_close(other.cpu(), one, rtol=1e-5, atol=1e-6 * (float(one.abs().max()) or 1.0))


@pytest.mark.parametrize("case", ["compression.codec=svd", "compression.codec=rdsvd", "stack=8"])
def test_whole_runs(case: str):
    overrides = ["rounds=2", case]
    there, again = (play(f"device={DEVICE}", *overrides)[0].exchange.replica for _ in range(2))
    assert torch.equal(there, again)
    here = play("device=cpu", *overrides)[0].exchange.replica
    torch.testing.assert_close(there.cpu(), here, rtol=0.02, atol=0.02 * float(here.abs().max()))


def test_float16_scales_its_losses_and_remembers_the_scale():
    choices = ["rounds=2", "precision=float16", "compression.codec=none", "optimizer.momentum=0"]
    choices += ["optimizer.name=torch.optim.RAdam", "teacher.learning_rate=0.01", "student.learning_rate=0.01"]
    run, again = (play(f"device={DEVICE}", *choices)[0] for _ in range(2))
    assert torch.equal(run.exchange.replica, again.exchange.replica)
    assert all(client.tensors["scaler.scale"] > 0 for client in run.clients.values())
    here = play("device=cpu", *choices, "precision=float32")[0].exchange.replica
    torch.testing.assert_close(run.exchange.replica.cpu(), here, rtol=0.05, atol=0.05 * float(here.abs().max()))


def test_streams_key_the_device_and_put_it_back():
    def inside() -> torch.Tensor:
        with torch_scope(0, "training", 3, 1, device=DEVICE):
            return torch.rand(5, device=DEVICE)

    first = inside()
    free = torch.rand(5, device=DEVICE)
    assert torch.equal(inside(), first)
    assert not torch.equal(torch.rand(5, device=DEVICE), free)


def test_staging_keeps_every_bit():
    values = random(7, 5)
    there = to_device(values, DEVICE)
    assert there.device == torch.device(DEVICE)
    assert torch.equal(to_host(there), values)
    assert to_host(there).device == torch.device("cpu")
