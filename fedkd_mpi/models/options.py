"""The options of every model family, validated by pydantic: an invalid option is refused before torch is imported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, field_validator, model_validator

from fedkd_mpi.common.options import Count, Options


class MLPOptions(Options):
    """Fully connected layers of widths `hidden`; an empty list is a softmax regression."""

    hidden: list[Count] = Field([128, 64], max_length=1000, description="widths of the hidden layers")
    activation: Literal["relu", "gelu", "tanh"] = Field("relu", description="between the layers")


class CNNOptions(Options):
    """A convolution, 2x2 max pooling and activation per entry of `channels`, then fully connected layers `hidden`."""

    channels: list[Count] = Field([32, 64], min_length=1, max_length=30, description="channels of each convolution")
    kernel_size: Annotated[int, Field(ge=1, le=1000)] = Field(5, description="kernel of the convolutions")
    padding: Annotated[int, Field(ge=0, le=1000)] = Field(0, description="padding of the convolutions")
    hidden: list[Count] = Field([512], max_length=1000, description="widths of the fully connected layers that follow")
    norm: Literal["none", "group", "batch"] = Field("none", description="normalisation after each convolution")

    @model_validator(mode="after")
    def _padding_is_less_than_the_kernel(self) -> CNNOptions:
        if self.padding >= self.kernel_size:
            raise ValueError(f"padding ({self.padding}) must be less than kernel_size ({self.kernel_size})")
        return self


class ResNetOptions(Options):
    """`depth` 6n+2 has three stages (CIFAR), 18 has four; `width` is that of the first stage (null: 16 or 64)."""

    depth: Annotated[int, Field(ge=1, le=1202)] = Field(20, description="6n+2 (three stages), or 18 (four)")
    width: Count | None = Field(None, description="channels of the first stage; null = 16, or 64 for depth 18")
    norm: Literal["group", "batch"] = Field("group", description="normalisation after each convolution")

    @field_validator("depth")
    @classmethod
    def _known_depth(cls, depth: int) -> int:
        if depth != 18 and (depth < 8 or depth % 6 != 2):
            raise ValueError("must be 6n+2 (8, 14, 20, 32, 44, 56, ...) or 18")
        return depth


class REDCNNOptions(Options):
    """`depth` convolutions of `width` channels and as many transposed ones; the defaults are those of RED-CNN."""

    width: Count = Field(96, description="channels of each inner convolution")
    depth: Annotated[int, Field(ge=1, le=1000)] = Field(5, description="convolutions, and as many transposed ones")
    kernel_size: Annotated[int, Field(ge=1, le=1000)] = Field(5, description="kernel of all of them")


class BertOptions(Options):
    """An encoder from a local folder `path`, or a new one; `layers` are the first layers (null: all, or 4 if new)."""

    path: str | None = Field(None, description="local folder of an encoder; null: a new one (docs/tasks.md)")
    layers: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        None, description="the first layers alone; null: all, or 4 of a new one"
    )
    width: Count | None = Field(None, description="hidden size of a new one; null: 128")
    heads: Annotated[int, Field(ge=1, le=10_000)] | None = Field(
        None, description="attention heads of a new one; null: 4"
    )
    intermediate: Count | None = Field(None, description="inner width of a new one; null: 4 * width")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.1, description="of hidden states; attention maps have none")

    @model_validator(mode="after")
    def _of_a_new_one(self) -> BertOptions:
        for name in ("width", "heads", "intermediate"):
            if self.path is not None and getattr(self, name) is not None:
                raise ValueError(f"{name} is determined by path={self.path}; remove one of the two")
        return self


class PictureOptions(Options):
    """A network of another library with a new head: its hidden feature is its pooled output of `width` numbers."""

    width: Count | None = Field(512, description="numbers of the hidden feature, a projection; null: as they are")
    projection: Literal["linear", "pool"] = Field(
        "linear", description="to `width`: a trained map, or means of neighbouring numbers"
    )
    attention: bool = Field(False, description="return attention maps, for equation 5; of vision transformers")


class TorchvisionOptions(PictureOptions):
    """A classifier of torchvision; `name: torchvision:NAME` is short for `name: torchvision` and `model: NAME`."""

    model: str = Field(pattern=r"^\w{1,100}$", description="its name in torchvision.models")
    stem: Literal["standard", "small"] = Field(
        "standard", description="small: the first layers keep the size of small pictures"
    )
    weights: str | None = Field(None, description="safetensors file of torchvision's state_dict; null: from scratch")


class HFPictureOptions(PictureOptions):
    """A vision model of transformers; `name: hf:FOLDER` is short for `name: hf` and `path: FOLDER`."""

    path: str = Field(description="local folder of the model; with config.json alone: a new one")


class Family(NamedTuple):
    """An entry of the registry: the options of a model family and its module:class, which is imported on use."""

    options: type[Options]
    path: str


FAMILIES: dict[str, Family] = {
    "mlp": Family(MLPOptions, "fedkd_mpi.models.mlp:MLP"),
    "cnn": Family(CNNOptions, "fedkd_mpi.models.cnn:CNN"),
    "redcnn": Family(REDCNNOptions, "fedkd_mpi.models.redcnn:REDCNN"),
    "resnet": Family(ResNetOptions, "fedkd_mpi.models.resnet:ResNet"),
    "bert": Family(BertOptions, "fedkd_mpi.models.bert:Bert"),
    "torchvision": Family(TorchvisionOptions, "fedkd_mpi.models.torchvision_model:TorchvisionModel"),
    "hf": Family(HFPictureOptions, "fedkd_mpi.models.hf_pictures:HFPictures"),
}
SHORT = {
    "torchvision": "model",
    "hf": "path",
}  # the option behind a colon: torchvision:resnet18


def spelled_out(network: Any) -> Any:
    """Return a section of a network with a name such as torchvision:resnet18 as name and option."""
    name = network.get("name") if isinstance(network, dict) else None
    family, colon, value = name.partition(":") if isinstance(name, str) else ("", "", "")
    if not (colon and value and family in SHORT):
        return network
    return {**network, "name": family, SHORT[family]: value}


def called(name: str, options: Mapping[str, Any]) -> str:
    """Return the name of a network for people: torchvision:resnet18 where the family alone does not say what it is."""
    return f"{name}:{options[SHORT[name]]}" if SHORT.get(name) in options else name
