"""Residual encoder-decoder CNNs for denoising: RED-CNN of Chen et al. (2017), IEEE TMI 36(12)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional

from fedkd_mpi.errors import UserError
from fedkd_mpi.models.output import Output


class REDCNN(nn.Module):
    """Unpadded convolutions, as many transposed convolutions, and shortcuts between every second pair of them.

    The output (`Output.logits`) is an image of the input's shape: the input plus a correction, which is initially zero.
    The hidden features are the outputs of the convolutions averaged over the image. Images must have at least
    depth * (kernel_size - 1) + 1 pixels per side. Raises UserError for other inputs.
    """

    def __init__(self, input_shape: Sequence[int], num_classes: int, *, width: int, depth: int, kernel_size: int):
        super().__init__()
        least = depth * (kernel_size - 1) + 1
        if len(input_shape) != 3 or min(input_shape[1:]) < least:
            raise UserError(
                f"a redcnn of depth {depth} and kernel_size {kernel_size} needs images [channels, height, width] of"
                f" at least {least} pixels per side; the data have shape {list(input_shape)}"
            )
        widths = [input_shape[0], *[width] * depth]
        self.hidden_sizes = (width,) * depth
        self.encoder = nn.ModuleList(nn.Conv2d(into, out, kernel_size) for into, out in pairwise(widths))
        self.decoder = nn.ModuleList(nn.ConvTranspose2d(out, into, kernel_size) for into, out in pairwise(widths))
        for parameter in self.decoder[0].parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Output:
        layers, features = [x], []
        for layer in self.encoder:
            layers.append(functional.relu(layer(layers[-1])))
            features.append(layers[-1].mean((2, 3)))
        x = layers[-1]
        for index in reversed(range(len(self.decoder))):
            x = self.decoder[index](x)
            if index % 2 == 0:
                x = x + layers[index]
            x = functional.relu_(x)
        return Output(x, tuple(features))
