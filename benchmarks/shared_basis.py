"""shared_basis: the bytes that codec rdsvd would save with a basis from earlier broadcasts.

    python -m benchmarks shared_basis [--config digits_rdsvd.yaml] [--rounds 15] [KEY=VALUE ...]

All processes have the broadcasts, so a client could send the coefficients of its update in a basis of them: n x k
numbers instead of factors of n x m. The basis is the best one for the broadcasts so far (a decaying sum, as in Liberty
2013), with half as many directions as the short side. `energy` is the share of a client's update in the basis; if it is
above T, coefficients alone are sufficient. Their quantised factors are compared with the records of rdsvd. One process.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fedkd_mpi.codecs import State, rdsvd
from fedkd_mpi.codecs.rate_distortion import plan
from fedkd_mpi.codecs.wire import Record
from fedkd_mpi.linalg.low_rank import directions
from fedkd_mpi.run import main

DECAY, SHARE = 0.7, 0.5  # factor to the sum at each broadcast; directions as a share of the short side


class Watched(rdsvd.RateDistortionSvd):
    """Codec rdsvd, which records the size of each matrix with a shared basis; its messages are unchanged."""

    seen: ClassVar[dict[str, list[tuple[float, float, int, int]]]] = defaultdict(list)  # T, energy, bytes, with basis
    sums: ClassVar[dict[str, Tensor]] = {}
    _decoded: list[Tensor] | None = None

    def encode(
        self, update: Sequence[Tensor], threshold: float, state: State, rng: np.random.Generator
    ) -> list[Record]:
        """Return the records of rdsvd."""
        records = super().encode(update, threshold, state, rng)
        for tensor, layer, record in zip(update, self.layers, records, strict=True):
            if layer.name in self.sums and tensor.any():
                wide = _wide(tensor)
                coefficients = wide @ torch.nn.functional.normalize(self.sums[layer.name], dim=1).T
                energy = float(coefficients.double().square().sum() / wide.double().square().sum())
                other = record.data.size
                if energy > threshold + 1e-4:
                    other = min(other, *(found.data.size for found in _coded(coefficients, threshold / energy)))
                self.seen[layer.name].append((threshold, energy, record.data.size, other))
        return records

    def decode(self, records: Sequence[Record], device: str) -> list[Tensor]:
        """Return the tensors and keep them, because a broadcast is received directly after it is decoded."""
        self._decoded = super().decode(records, device)
        return self._decoded

    def receive(self, decoded: Sequence[Tensor], state: State, share: float) -> list[Tensor]:
        """Return the update; a broadcast also updates the bases."""
        if decoded is self._decoded:
            for tensor, layer in zip(decoded, self.layers, strict=True):
                if layer.compressible:
                    wide = _wide(tensor)
                    rows = torch.cat([DECAY * self.sums.get(layer.name, wide[:0]), wide])
                    _, sigma, right = torch.linalg.svd(rows, full_matrices=False)
                    count = max(int(SHARE * wide.shape[0]), 1)
                    self.sums[layer.name] = sigma[:count, None] * right[:count]
        return super().receive(decoded, state, share)


def run(arguments: list[str]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Run the rounds and compare bytes, layer by layer."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks shared_basis")
    parser.add_argument("--config", default="digits_rdsvd.yaml")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("overrides", nargs="*")
    chosen = parser.parse_intermixed_args(arguments)
    own = [f"rounds={chosen.rounds}", "compression.codec=benchmarks.shared_basis:Watched", "checkpoint.every=null"]
    own += ["compression.error_feedback=none", "compression.energy_scope=tensor"]
    with tempfile.TemporaryDirectory() as folder:
        code = main(["--config", chosen.config, "--output", str(Path(folder) / "log.h5"), *own, *chosen.overrides])
    if code:
        raise SystemExit(code)
    rows = []
    for name, noted in Watched.seen.items():
        threshold, energy, sent, other = np.array(noted).T
        rows.append(
            {
                "layer": name,
                "messages": len(noted),
                "T": float(threshold.mean()),
                "energy in the basis": float(energy.mean()),
                "smaller with it": int((other < sent).sum()),
                "bytes / bytes with it": float(sent.sum() / other.sum()),
            }
        )
    sent, other = np.array([note[2:] for noted in Watched.seen.values() for note in noted]).sum(0)
    return {"bytes_over_bytes_with_a_shared_basis": float(sent / other)}, rows


def _wide(tensor: Tensor) -> Tensor:
    matrix = tensor.reshape(tensor.shape[0], -1)
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T


def _coded(coefficients: Tensor, threshold: float) -> list[Record]:
    wide = _wide(coefficients / coefficients.abs().max()).contiguous()
    basis, energies = directions(wide, threshold)
    candidate = rdsvd.Candidate(0, wide, None, basis, energies, plan(energies, wide.shape[0], wide.shape[1], threshold))
    return rdsvd._quantized(candidate, 0, threshold)
