"""The keys under `data` of the four readers of a user's own files: folder, csv, npz and hf."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from fedkd_mpi.common.options import Options
from fedkd_mpi.datasets.options import TextOptions

Name = Annotated[str, Field(min_length=1, max_length=1000)]
Side = Annotated[int, Field(ge=1, le=4096)]


class OwnOptions(Options):
    """Where the files are, and what is held out as the global test set where they do not say so."""

    path: Name = Field(description="file or folder, from the working directory; ~ and $VARIABLES are replaced")
    test_fraction: float = Field(
        0.2, gt=0, lt=1, description="share of every class in the global test set, where the files name none"
    )
    standardise: bool = Field(
        True, description="give the networks inputs of mean 0 and deviation 1 over the training part"
    )


class PictureOptions(OwnOptions):
    """How pictures of any kind become arrays of the same size."""

    size: Side | None = Field(
        None, description="the square in the middle is scaled to so many pixels a side; null: all have the same size"
    )
    grey: bool = Field(False, description="one channel of brightness in place of red, green and blue")


class FolderOptions(PictureOptions):
    """Pictures in one folder per class, which may be within train/ and test/."""


class TableOptions(OwnOptions, TextOptions):
    """The columns of a table: what is the input, the class, the owner and the part of a row."""

    label: Name = Field("label", description="column of the class")
    text: Name | None = Field(None, description="column of the text, for task=text_classification")
    features: list[Name] | None = Field(
        None, min_length=1, description="columns of numbers, for task=tabular; null: all that no other key names"
    )
    client: Name | None = Field(None, description="column of the owner, for partition.kind=natural")
    split: Name | None = Field(None, description="column that says train or test; null: test_fraction is held out")
    id: Name | None = Field(None, description="column of the sample's name, for partition files")

    @model_validator(mode="after")
    def _one_input(self) -> TableOptions:
        if self.text is not None and self.features is not None:
            raise ValueError("give one of text (task=text_classification) and features (task=tabular)")
        return self


class CsvOptions(TableOptions):
    """A table of text lines with a header."""

    categorical: list[Name] = Field(
        [], description="columns of text among the features; each of their values becomes a feature of 0 and 1"
    )
    separator: Annotated[str, Field(min_length=1, max_length=1)] | None = Field(
        None, description="between columns; null: a tab where the name ends in .tsv, else a comma"
    )


class NpzOptions(OwnOptions):
    """Names of the arrays in the file; client, split and id are read where the file has them."""

    x: Name = Field("x", description="inputs: [n, features], [n, height, width] or [n, channels, height, width]")
    y: Name = Field("y", description="classes [n], whole numbers or texts")
    x_test: Name | None = Field(None, description="inputs of the global test set; null: by split or test_fraction")
    y_test: Name | None = Field(None, description="classes of the global test set")
    client: Name = Field("client", description="owners [n], for partition.kind=natural")
    split: Name = Field("split", description="train or test [n]; where it is not there, test_fraction is held out")
    id: Name = Field("id", description="names of the samples [n], for partition files")
    channels_last: bool | None = Field(None, description="whether x is [n, height, width, channels]; null: it is not")

    @model_validator(mode="after")
    def _both_of_the_test(self) -> NpzOptions:
        if (self.x_test is None) != (self.y_test is None):
            raise ValueError("give both of x_test and y_test, or none")
        return self


class HfOptions(TableOptions, PictureOptions):
    """A folder that the datasets library has saved; its splits train and test are read where it has them."""

    image: Name | None = Field(None, description="column of pictures, for task=image_classification")

    @model_validator(mode="after")
    def _one_of_three(self) -> HfOptions:
        if self.image is not None and (self.text is not None or self.features is not None):
            raise ValueError("give one of image, text and features")
        return self


OWN: dict[str, type[Options]] = {"folder": FolderOptions, "csv": CsvOptions, "npz": NpzOptions, "hf": HfOptions}
