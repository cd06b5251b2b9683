"""Classifiers of torchvision with a new head, pooled features as hidden state, and a stem for small pictures."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from fedkd_mpi.common.registry import nearest
from fedkd_mpi.errors import UserError, one_line, shown
from fedkd_mpi.models.output import Output
from fedkd_mpi.models.picture_encoder import ERRORS, PictureEncoder, require_pictures
from fedkd_mpi.models.state_file import read

# Classifiers beside the last layer, of training alone: they are left out.
AUXILIARY = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}


class TorchvisionModel(PictureEncoder):
    """The classifier `model` of torchvision.models without its last layer, as `body`.

    `stem`: "small" gives the first convolution stride 1, 3 x 3 pixels and no pooling behind it; one that cuts patches
    gets patches of 2 x 2. `weights` is a safetensors file of torchvision's state_dict. With `attention` a vision
    transformer returns its maps in training mode. Raises UserError for unknown models and options without a meaning.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        *,
        model: str,
        width: int | None,
        projection: str,
        stem: str,
        weights: str | None,
        attention: bool,
    ):
        super().__init__()
        name = f"torchvision:{model}"
        require_pictures(name, input_shape)
        self.body = _build(model, input_shape)
        if weights is not None:
            _load(self.body, model, weights)
            if stem == "small" or input_shape[0] != 3:
                raise UserError(f"{name}: weights are of stem=standard and of pictures with 3 channels")
        features = _cut(self.body, name)
        _fit_stem(self.body, name, input_shape[0], small=stem == "small")
        self.add_head(features, num_classes, width, projection)
        self._maps: list[Tensor] = []
        if attention:
            self._watch(name)
        self.require_fit(name, input_shape)

    def forward(self, x: Tensor) -> Output:
        features = self.body(x)
        maps, self._maps = tuple(self._maps), []
        return self.outputs(features, maps)

    def _watch(self, name: str) -> None:
        """Collect the attention maps [N, heads, L, L] of every block in training mode."""
        blocks = [layer for layer in self.body.modules() if isinstance(layer, nn.MultiheadAttention)]
        if not blocks:
            raise UserError(f"{name}: attention=true needs a network with complete attention maps, such as vit_b_16")

        def ask(layer: nn.Module, inputs: Any, options: dict[str, Any]) -> Any:
            wanted = {"need_weights": True, "average_attn_weights": False} if layer.training else {}
            return inputs, {**options, **wanted}

        def collect(layer: nn.Module, inputs: Any, output: Any) -> None:
            if layer.training:
                self._maps.append(output[1])

        for block in blocks:
            block.register_forward_pre_hook(ask, with_kwargs=True)
            block.register_forward_hook(collect)


def library() -> Any:
    """Return torchvision.models; raises UserError saying what is wrong where it cannot be imported."""
    try:
        from torchvision import models
    except ModuleNotFoundError as error:
        if error.name != "torchvision":
            raise
        raise UserError("name=torchvision:NAME needs torchvision: pip install 'fedkd-mpi[torchvision]'") from None
    except (ImportError, RuntimeError, AttributeError, OSError) as error:  # its operators are of another build of torch
        raise UserError(
            f"torchvision cannot be imported beside torch {torch.__version__} ({one_line(error)}): install the"
            " torchvision of the index that this torch comes from"
        ) from None
    return models


def _build(model: str, input_shape: Sequence[int]) -> nn.Module:
    models = library()
    known = models.list_models(module=models)
    if model not in known:
        near = nearest(model, known)
        hint = f"did you mean {near}?" if near else "torchvision.models.list_models() names them"
        raise UserError(f"torchvision has no classifier {shown(model)}; {hint}")
    options: dict[str, Any] = {}
    if model in AUXILIARY:
        options = {"aux_logits": False, "init_weights": True}
    if model.startswith("vit_"):
        if input_shape[1] != input_shape[2]:
            raise UserError(f"torchvision:{model} needs square pictures, not {input_shape[1]}x{input_shape[2]}")
        options = {"image_size": input_shape[1]}
    try:
        return cast("nn.Module", models.get_model(model, weights=None, **options))
    except ERRORS as error:
        shape = f"{input_shape[1]}x{input_shape[2]}"
        raise UserError(f"torchvision:{model} does not take pictures of {shape}: {one_line(error)}") from None


def _last(body: nn.Module) -> tuple[str, nn.Module]:
    """Return the layer of the logits and its name: the last linear one, or else the last convolution."""
    layers = list(body.named_modules())
    linear = [(name, layer) for name, layer in layers if isinstance(layer, nn.Linear)]
    return linear[-1] if linear else [(n, layer) for n, layer in layers if isinstance(layer, nn.Conv2d)][-1]


def _cut(body: nn.Module, name: str) -> int:
    """Take the layer of the logits out of a network, so that it returns the input of it; return how wide that is."""
    last, layer = _last(body)
    if isinstance(layer, nn.Linear):
        body.set_submodule(last, nn.Identity())
        return layer.in_features
    classifier = getattr(body, "classifier", None)
    if not isinstance(layer, nn.Conv2d) or not isinstance(classifier, nn.Sequential):
        raise UserError(f"{name}: the layer of its logits is not known")
    # SqueezeNet: a convolution to the classes, whose mean over places are the logits.
    body.set_submodule("classifier", nn.Sequential(classifier[0], nn.AdaptiveAvgPool2d(1)))
    return layer.in_channels


def _fit_stem(body: nn.Module, name: str, channels: int, *, small: bool) -> None:
    """Make the first convolution take so many channels, and with `small` keep the size of the picture."""
    layers = list(body.named_modules())
    first, conv = next((n, layer) for n, layer in layers if isinstance(layer, nn.Conv2d))
    kernel, stride, padding = (cast("tuple[int, int]", part) for part in (conv.kernel_size, conv.stride, conv.padding))
    if small and name.startswith("torchvision:vit_"):
        raise UserError(f"{name}: stem=small has no meaning for a vision transformer: choose one of smaller patches")
    patches = kernel == stride and stride != (1, 1)
    if small and stride != (1, 1):
        kernel, stride, padding = ((2, 2), (2, 2), (0, 0)) if patches else ((3, 3), (1, 1), (1, 1))
        pools = [n for n, layer in layers if isinstance(layer, nn.MaxPool2d)]
        for pool in pools[:1]:
            body.set_submodule(pool, nn.Identity())
    if (channels, kernel, stride) != (conv.in_channels, conv.kernel_size, conv.stride):
        make = partial(nn.Conv2d, channels, conv.out_channels, kernel, stride, padding, bias=conv.bias is not None)
        new = make()
        nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
        body.set_submodule(first, new)


def _load(body: nn.Module, model: str, weights: str) -> None:
    """Give a network the values of a file, except for the layer of the logits and auxiliary classifiers."""
    tensors, own, last = read(Path(weights), None, "weights"), body.state_dict(), _last(body)[0]
    unused = (f"{last}.", *AUXILIARY.get(model, ()))
    for name in sorted(own.keys() | tensors.keys()):
        if name.startswith(unused):
            continue
        if name not in tensors or name not in own:
            what = "lacks" if name in own else "has"
            raise UserError(f"weights={shown(weights)} {what} the tensor {shown(name)}, unlike torchvision:{model}")
        if tensors[name].shape != own[name].shape:
            shapes = f"{list(tensors[name].shape)}, that of torchvision:{model} is {list(own[name].shape)}"
            raise UserError(f"weights={shown(weights)}: {shown(name)} is {shapes}")
        if tensors[name].is_floating_point() and not torch.isfinite(tensors[name]).all():
            raise UserError(f"weights={shown(weights)}: {shown(name)} holds NaN or infinity")
        own[name].copy_(tensors[name])
