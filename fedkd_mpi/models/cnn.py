"""Plain convolutional networks; the default is the CNN of McMahan et al. (2017), without padding as in FL libraries."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional

from fedkd_mpi.errors import UserError
from fedkd_mpi.models.norms import norm as make_norm
from fedkd_mpi.models.output import Output


class CNN(nn.Module):
    """Stages of convolution, norm, 2x2 max pooling and ReLU, followed by fully connected layers.

    The hidden features are the output of each stage averaged over the image [N, channels] and the output of each fully
    connected layer after ReLU. Raises UserError for inputs that are not images or too small for the stages.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        *,
        channels: Sequence[int],
        kernel_size: int,
        padding: int,
        hidden: Sequence[int],
        norm: str,
    ):
        super().__init__()
        if len(input_shape) != 3:
            raise UserError(f"a cnn needs images [channels, height, width]; the data have shape {list(input_shape)}")
        depth, *sides = input_shape
        for stage in range(1, len(channels) + 1):
            sides = [(side + 2 * padding - kernel_size + 1) // 2 for side in sides]
            if min(sides) < 1:
                raise UserError(
                    f"images of {input_shape[1]}x{input_shape[2]} are too small: stage {stage} of {len(channels)}"
                    f" (kernel_size {kernel_size}, padding {padding}, 2x2 pooling) leaves no pixel;"
                    " increase padding or give fewer channels"
                )
        self.hidden_sizes = (*channels, *hidden)
        self.convs = nn.ModuleList(
            nn.Conv2d(*pair, kernel_size, padding=padding, bias=norm == "none") for pair in pairwise((depth, *channels))
        )
        self.norms = nn.ModuleList(make_norm(norm, width) for width in channels)
        widths = (channels[-1] * sides[0] * sides[1], *hidden)
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Output:
        features = []
        for conv, norm in zip(self.convs, self.norms, strict=True):
            # ReLU is monotone: after the pooling it gives the same numbers with a quarter of the work.
            x = functional.relu_(functional.max_pool2d(norm(conv(x)), 2))
            features.append(x.mean((2, 3)))
        x = x.flatten(1)
        for layer in self.layers:
            x = functional.relu_(layer(x))
            features.append(x)
        return Output(self.head(x), tuple(features))
