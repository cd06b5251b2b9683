"""The keys of single data sets under `data`, next to name, root and augment."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from fedkd_mpi.common.options import Count, Options

HU = Annotated[int, Field(strict=True, ge=-32_768, le=32_767)]


class FlowersOptions(Options):
    """Photographs have various sizes; the central square is scaled to `size` x `size` pixels."""

    size: Annotated[int, Field(ge=1, le=2048)] = 64


class MayoCTOptions(Options):
    """The window of HU, the patches of training slices, the patients of the global test set, and the owners.

    `photons` per ray simulate the low dose with `angles` projections, instead of the quarter-dose slices.
    `drop_constant` omits patches without signal (air) from training.
    """

    window: Annotated[tuple[HU, HU], Field(strict=False)] = (-160, 240)
    patch: Annotated[int, Field(ge=11, le=4096)] = 64  # SSIM has a window of 11 pixels
    test_patients: list[str] = Field(["L506"], min_length=1)
    owner: Literal["patient", "scanner"] = "patient"
    thickness: Literal["1mm", "3mm"] = "3mm"
    photons: float | None = Field(None, ge=1, le=1e15)
    angles: Annotated[int, Field(ge=1, le=100_000)] = 720
    drop_constant: bool = False

    @field_validator("window")
    @classmethod
    def _rises(cls, window: tuple[int, int]) -> tuple[int, int]:
        if window[0] >= window[1]:
            raise ValueError("must be two HU, the lower first")
        return window


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

    positive_weight: float = Field(1.0, ge=1e-6, le=1e6)


class CorporaOptions(TextOptions):
    """One or more corpora with marked spans; with several corpora, each is the natural owner of its texts."""

    corpora: list[Literal["ade", "cadec", "smm4h"]] = Field(["ade"], min_length=1)


class NewsOptions(TextOptions):
    """Titles of `length` tokens; `history` is the number of a user's last clicks that are read."""

    length: Annotated[int, Field(ge=3, le=100_000)] = 30
    history: Annotated[int, Field(ge=1, le=100_000)] = 50


OPTIONS: dict[str, type[Options]] = {
    "flowers102": FlowersOptions,
    "mayo_ct": MayoCTOptions,
    "ade": SentencesOptions,
    "smm4h": SentencesOptions,
    "medical_ner": CorporaOptions,
    "mind_small": NewsOptions,
    "mind_large": NewsOptions,
}
