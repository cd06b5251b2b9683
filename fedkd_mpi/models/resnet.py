"""Residual networks for small images: the CIFAR family of He et al. (2016), section 4.2, and ResNet-18."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from fedkd_mpi.errors import UserError
from fedkd_mpi.models.norms import norm as make_norm
from fedkd_mpi.models.output import Output


class ResNet(nn.Module):
    """Basic blocks in stages that halve the image and double the width.

    The hidden features are the outputs of the stages averaged over the image. Depth 6n+2 has three stages of n blocks
    and shortcuts without parameters (option A of the paper). Depth 18 has four stages of two blocks with projection
    shortcuts, and a 3x3 stem without pooling for small images. Raises UserError for inputs that are not images.
    """

    def __init__(self, input_shape: Sequence[int], num_classes: int, *, depth: int, width: int | None, norm: str):
        super().__init__()
        if len(input_shape) != 3:
            raise UserError(f"a resnet needs images [channels, height, width]; the data have shape {list(input_shape)}")
        big = depth == 18
        stages, blocks = (4, 2) if big else (3, (depth - 2) // 6)
        width = width or (64 if big else 16)
        self.hidden_sizes = tuple(width << stage for stage in range(stages))
        self.stem = nn.Conv2d(input_shape[0], width, 3, padding=1, bias=False)
        self.norm = make_norm(norm, width)
        self.stages = nn.ModuleList()
        for stage, out in enumerate(self.hidden_sizes):
            first = _Block(out if stage == 0 else out // 2, out, norm, halve=stage > 0, project=big)
            self.stages.append(nn.Sequential(first, *(_Block(out, out, norm) for _ in range(blocks - 1))))
        self.head = nn.Linear(self.hidden_sizes[-1], num_classes)

    def forward(self, x: Tensor) -> Output:
        x = functional.relu_(self.norm(self.stem(x)))
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x.mean((2, 3)))
        return Output(self.head(features[-1]), tuple(features))


class _Block(nn.Module):
    """Two 3x3 convolutions and a shortcut; `halve` keeps every second pixel, `project` uses a learned projection."""

    def __init__(self, into: int, out: int, norm: str, *, halve: bool = False, project: bool = False):
        super().__init__()
        self.conv1 = nn.Conv2d(into, out, 3, stride=2 if halve else 1, padding=1, bias=False)
        self.norm1 = make_norm(norm, out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.norm2 = make_norm(norm, out)
        self.shortcut: nn.Module
        if not halve:
            self.shortcut = nn.Identity()
        elif project:
            self.shortcut = nn.Sequential(nn.Conv2d(into, out, 1, stride=2, bias=False), make_norm(norm, out))
        else:
            self.shortcut = _Subsample(out - into)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(functional.relu_(self.norm1(self.conv1(x)))))
        return functional.relu_(y.add_(self.shortcut(x)))


class _Subsample(nn.Module):
    """Every second pixel, with zero channels added on both sides (He et al., option A)."""

    def __init__(self, extra: int):
        super().__init__()
        self._extra = (extra // 2, extra - extra // 2)

    def forward(self, x: Tensor) -> Tensor:
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, *self._extra))
