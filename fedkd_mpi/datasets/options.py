"""The keys of single data sets under `data`, next to name, root and augment."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from fedkd_mpi.options import Count, Options


class FlowersOptions(Options):
    """The photographs have all sizes: the square in their middle is scaled to `size` x `size` pixels."""

    size: Count = 64


class MayoCTOptions(Options):
    """The window of HU that counts, patches of the training slices, whose slices are for the global test, and owners.

    `photons` a ray simulate the low dose, over `angles` projections, in place of the quarter-dose slices.
    """

    window: tuple[int, int] = (-160, 240)
    patch: Annotated[int, Field(strict=True, ge=7)] = 64  # SSIM looks through a window of 7 pixels
    test_patients: list[str] = Field(["L506"], min_length=1)
    owner: Literal["patient", "scanner"] = "patient"
    thickness: Literal["1mm", "3mm"] = "3mm"
    photons: float | None = Field(None, gt=0)
    angles: Count = 720

    @field_validator("window")
    @classmethod
    def _rises(cls, window: tuple[int, int]) -> tuple[int, int]:
        if window[0] >= window[1]:
            raise ValueError("must be two HU, the lower first")
        return window


OPTIONS: dict[str, type[Options]] = {"flowers102": FlowersOptions, "mayo_ct": MayoCTOptions}
