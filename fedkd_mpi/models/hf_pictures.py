"""Vision models of Hugging Face transformers, from a local folder or new from a configuration in one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedkd_mpi.datasets import expanded
from fedkd_mpi.errors import UserError, one_line
from fedkd_mpi.models import pretrained
from fedkd_mpi.models.output import Output
from fedkd_mpi.models.picture_encoder import PictureEncoder, picture, require_pictures
from fedkd_mpi.models.plain import pooled


class HFPictures(PictureEncoder):
    """The model in the local folder `path`: with its weights, or new where there is config.json alone.

    A new one takes the size and the channels of the data's pictures. The feature of a picture is what the model pools
    without parameters for it, or else the mean of the last hidden state over tokens. With `attention` its maps are
    returned in training mode. Raises UserError for a folder that is invalid or holds no model of pictures. Nothing is
    downloaded, and code in the folder is never run.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        *,
        path: str,
        width: int | None,
        projection: str,
        attention: bool,
    ):
        super().__init__()
        require_pictures(f"hf:{path}", input_shape)
        self._attention = attention
        try:
            self.body = _model(expanded(path), input_shape, attention=attention)
            features = _width(self.body, input_shape)
        except UserError:
            raise
        except pretrained.ERRORS as error:
            raise UserError(f"path={path} cannot be loaded: {one_line(error)}") from None
        self.add_head(features, num_classes, width, projection)
        self.require_fit(f"hf:{path}", input_shape)

    def forward(self, x: Tensor) -> Output:
        if not (self._attention and self.training):
            return self.outputs(_features(self.body(pixel_values=x)))
        found = self.body(pixel_values=x, output_attentions=True)
        return self.outputs(_features(found), tuple(found.attentions))


def _model(path: Path, input_shape: Sequence[int], *, attention: bool) -> nn.Module:
    raw = pretrained.json_object(path / "config.json")
    if "auto_map" in raw:
        raise UserError(f"path={path} needs code of its own (auto_map in config.json), which is never run here")
    settings = pretrained.AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    channels = getattr(settings, "num_channels", None)
    if channels is None:
        raise UserError(f"path={path}: a {settings.model_type} reads no pictures")
    how: dict[str, Any] = {"attn_implementation": "eager"} if attention else {}
    bare = not any((path / name).exists() for name in (pretrained.WEIGHTS, pretrained.INDEX))
    if bare and not list(path.glob("*.bin")):
        settings.num_channels = input_shape[0]
        if hasattr(settings, "image_size"):
            settings.image_size = input_shape[1] if input_shape[1] == input_shape[2] else list(input_shape[1:])
        return _without_pooler(pretrained.AutoModel.from_config(settings, **how))
    pretrained.check_files(path)
    if channels != input_shape[0]:
        raise UserError(f"path={path} reads pictures of {channels} channels, the data have {picture(input_shape)}")
    if torch.get_default_device().type == "meta":
        return _without_pooler(pretrained.AutoModel.from_config(settings, **how))
    model, _ = pretrained.read_weights(path, settings, **how)
    return _without_pooler(model)


def _features(found: Any) -> Tensor:
    """Return one vector per picture of what a model returns."""
    own = getattr(found, "pooler_output", None)
    return pooled(found, "the network") if own is None else own.flatten(1)


def _without_pooler(model: nn.Module) -> nn.Module:
    """Return a model without a pooler of parameters, which nothing here uses and which would be exchanged."""
    pooler = getattr(model, "pooler", None)
    if isinstance(pooler, nn.Module) and any(True for _ in pooler.parameters()):
        model.register_module("pooler", None)
    return model.train()


def _width(model: nn.Module, input_shape: Sequence[int]) -> int:
    """Return how many numbers the features of a picture have."""
    with torch.no_grad():
        model.eval()
        device = next(model.parameters()).device
        found = _features(model(pixel_values=torch.zeros(1, *input_shape, device=device)))
        model.train()
    return int(found.shape[-1])
