"""The keys of single data sets under `data`, next to name, root and augment."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from fedkd_mpi.common.options import Count, Options

HU = Annotated[int, Field(strict=True, ge=-32_768, le=32_767)]
Range = Annotated[tuple[HU, HU], Field(strict=False)]
Millimetres = Annotated[float, Field(ge=1e-3, le=1e5)]


class FlowersOptions(Options):
    """Photographs have various sizes; the central square is scaled to `size` x `size` pixels."""

    size: Annotated[int, Field(ge=1, le=2048)] = Field(
        64, description="pixels a side, to which the middle square is scaled"
    )


class ScannerOptions(Options):
    """A scanner with a fan of rays on a flat detector, which turns around the patient; lengths are in mm."""

    views: Annotated[int, Field(ge=2, le=100_000)] = Field(description="projections, equally spaced over 360 degrees")
    detectors: Annotated[int, Field(ge=2, le=100_000)] = Field(description="elements of the detector")
    spacing: Millimetres = Field(description="mm from one element to the next")
    source: Millimetres = Field(description="mm from the source to the centre")
    detector: Millimetres = Field(description="mm from the centre to the detector")
    photons: float = Field(ge=1, le=1e15, description="photons per ray")
    pixel: Millimetres | None = Field(None, description="mm per pixel of the slices; null: as in the files")


class MayoCTOptions(Options):
    """The window of HU, the patches of training slices, the patients of the global test set, and the owners.

    `photons` per ray simulate the low dose with `angles` projections, instead of the quarter-dose slices; `scanners` do
    so with a geometry of their own each. `drop_constant` omits patches without signal (air) from training.
    """

    window: Range = Field(
        (-160, 240), description="HU between which the scores are taken, and that are 0 and 1 for the networks"
    )
    range: Range | None = Field(
        None, description="wider HU that are 0 and 1 for the networks, and of the scores ..._full; null: the window"
    )
    # SSIM has a window of 11 pixels.
    patch: Annotated[int, Field(ge=11, le=4096)] = Field(64, description="pixels a side of the training patches")
    test_patients: list[str] = Field(["L506"], min_length=1, description="patients of the global test set")
    owner: Literal["patient", "scanner"] = Field("patient", description="natural owner of a slice")
    thickness: Literal["1mm", "3mm"] = Field("3mm", description="slices that are read")
    photons: float | None = Field(
        None, ge=1, le=1e15, description="per ray, to simulate a low dose; null: the quarter-dose slices are read"
    )
    angles: Annotated[int, Field(ge=1, le=100_000)] = Field(720, description="projections of the simulated low dose")
    size: Annotated[int, Field(ge=11, le=4096)] | None = Field(
        None, description="pixels a side of the slices, means over squares of those in the files; null: as they are"
    )
    scanners: Annotated[list[ScannerOptions], Field(min_length=1, max_length=1000)] | None = Field(
        None,
        description="scanners that simulate the low dose, natural owners of the patients in turn: views, detectors, in"
        " mm spacing of these and distances of source and detector from the centre, photons per ray, pixel in mm (null:"
        " as in the files)",
    )
    drop_constant: bool = Field(False, description="leave patches without signal (air) out of the training")

    @field_validator("window", "range")
    @classmethod
    def _rises(cls, hounsfield: tuple[int, int] | None) -> tuple[int, int] | None:
        if hounsfield and hounsfield[0] >= hounsfield[1]:
            raise ValueError("must be two HU, the lower first")
        return hounsfield

    @model_validator(mode="after")
    def _fits(self) -> MayoCTOptions:
        if self.range and not self.range[0] <= self.window[0] < self.window[1] <= self.range[1]:
            raise ValueError("data.range must contain data.window")
        if self.scanners and self.photons is not None:
            raise ValueError("data.scanners have photons of their own: omit data.photons")
        return self


class TextOptions(Options):
    """The tokenizer: from a local folder, or WordPiece trained on the training texts.

    `vocabulary` is for a trained tokenizer, `lowercase` for a trained tokenizer and vocab.txt; `length` is in tokens.
    """

    tokenizer: str | None = Field(None, description="local folder of a tokenizer; null: WordPiece is trained")
    vocabulary: Count = Field(8000, description="tokens of the trained WordPiece")
    length: Annotated[int, Field(ge=3, le=100_000)] = Field(64, description="tokens of a text; longer ones are cut")
    lowercase: bool = Field(True, description="of the trained WordPiece, and of a vocab.txt")


class SentencesOptions(TextOptions):
    """Sentences of two classes; in the loss, the weight of a positive sentence is `positive_weight`."""

    positive_weight: float = Field(1.0, ge=1e-6, le=1e6, description="weight of a positive sentence in the loss")


class CorporaOptions(TextOptions):
    """One or more corpora with marked spans; with several corpora, each is the natural owner of its texts."""

    corpora: list[Literal["ade", "cadec", "smm4h"]] = Field(
        ["ade"], min_length=1, description="corpora that are read; each is the natural owner of its texts"
    )


class NewsOptions(TextOptions):
    """Titles of `length` tokens; `history` is the number of a user's last clicks that are read."""

    length: Annotated[int, Field(ge=3, le=100_000)] = Field(30, description="tokens of a title; longer ones are cut")
    history: Annotated[int, Field(ge=1, le=100_000)] = Field(50, description="last clicks of a user that are read")


OPTIONS: dict[str, type[Options]] = {
    "flowers102": FlowersOptions,
    "mayo_ct": MayoCTOptions,
    "ade": SentencesOptions,
    "smm4h": SentencesOptions,
    "medical_ner": CorporaOptions,
    "mind_small": NewsOptions,
    "mind_large": NewsOptions,
}
