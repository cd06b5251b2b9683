"""Scanners of different geometry as the clients of low-dose CT, each with patients of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedkd_mpi.common.random_streams import generator
from fedkd_mpi.datasets import fan_beam
from fedkd_mpi.datasets.low_dose import low_dose
from fedkd_mpi.errors import UserError


class Scanners:
    """The scanners of data.scanners for so many training patients; raises UserError if some would have none."""

    def __init__(self, table: Sequence[Mapping[str, Any]], patients: int):
        if patients < len(table):
            raise UserError(f"data.scanners has {len(table)} scanners for {patients} patients to train on: give fewer")
        self._table = table

    def owner(self, patient: int) -> str:
        """Return the name of the scanner of the training patient `patient`, counted from 0."""
        return f"scanner {patient % len(self._table) + 1}"

    def scan(self, slices: np.ndarray, pixel: float, number: int, patient: int | None) -> np.ndarray:
        """Return the low-dose counterparts of slices, HU int16 [n, side, side] of `pixel` mm.

        They are those of the scanner of the training patient `patient`; for test slices (None) of the scanners in turn.
        `number` counts all patients, for noise that is the same for every seed of the run.
        """
        if slices.shape[1] != slices.shape[2]:
            raise UserError(f"data.scanners needs square slices, not {slices.shape[1]} x {slices.shape[2]} pixels")
        found = []
        for index, image in enumerate(slices):
            keys = dict(self._table[(index if patient is None else patient) % len(self._table)])
            photons, own = keys.pop("photons"), keys.pop("pixel", None)
            geometry = fan_beam.FanBeam(side=len(image), pixel=own or pixel, **keys)
            found.append(fan_beam.scan(image, geometry, photons, generator(0, "scan", number, index)))
        return np.stack(found)

    def notes(self) -> list[str]:
        """Return what a user must know of the simulation."""
        if fan_beam.has_astra():
            return []
        return ["data.scanners: astra-toolbox is not installed, so rays are parallel and detectors are not simulated"]


def simulate(slices: np.ndarray, pixel: float, patient: int, photons: float, angles: int) -> np.ndarray:
    """Return slices, HU int16 [n, H, W] of `pixel` mm, with the noise of parallel rays of so many photons each."""
    # A fixed seed instead of the run's seed, so that runs with different seeds have the same slices.
    rngs = (generator(0, "low dose", patient, number) for number in range(len(slices)))
    return np.stack([low_dose(image, pixel, photons, angles, rng) for image, rng in zip(slices, rngs, strict=True)])


def shrunk(slices: np.ndarray, pixel: float, size: int | None, folder: Path) -> tuple[np.ndarray, float]:
    """Return slices, int16 [n, H, W], as rounded means over squares, [n, size, size], and the new size of a pixel.

    With `size` None they are as they are. Raises UserError naming the folder where their sides are no multiple of it.
    """
    rows, columns = slices.shape[1:]
    if size is None or (rows, columns) == (size, size):
        return slices, pixel
    if rows != columns or rows % size:
        raise UserError(f"{folder}: slices of {rows} x {columns} pixels cannot be divided into data.size={size}")
    step = rows // size
    squares = slices.reshape(len(slices), size, step, size, step)
    return np.round(squares.mean((2, 4))).astype(np.int16), pixel * step
