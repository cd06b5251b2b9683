"""Models as others write them: they know no Output and no input shape, and return logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Small(nn.Module):
    """A convolutional network of a user's own, with defaults for everything."""

    def __init__(self, num_classes: int = 10, width: int = 8, dropout: float = 0.1):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.body = nn.Sequential(nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU())
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.fc = nn.Linear(2 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.dropout(self.body(self.stem(x)).mean((2, 3))))


class Tokens(nn.Module):
    """Reads a picture's rows as tokens; one of its layers returns a tuple."""

    def __init__(self, num_classes: int, width: int = 8):
        super().__init__()
        self.embed = nn.Linear(8, width)
        self.mix = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mix(self.embed(x[:, 0]))[0][:, -1])


class ByPlace(nn.Module):
    """Calls the shape and the number of classes as it likes."""

    def __init__(self, shape: tuple[int, ...], outputs: int):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(shape[-1] * shape[-2], outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def made(input_shape: tuple[int, ...], num_classes: int, *, width: int = 8) -> nn.Module:
    """A function that makes a model, as for a library's classifier whose first layer has to fit."""
    return Small(num_classes, width)


class Thousand(Small):
    """Knows its number of classes better."""

    def __init__(self) -> None:
        super().__init__(1000)


class Broken(Small):
    """Fails in its forward pass."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


class Dictionary(Small):
    """Returns what no task takes."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        return {"out": super().forward(x)}


class Explodes(nn.Module):
    """Cannot be made."""

    def __init__(self, num_classes: int):
        raise ZeroDivisionError("no width")


def hidden_of(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pooled features of Small's stem and body by calling its parts, without any hook."""
    stem = model.stem(x)
    return stem.mean((2, 3)), model.body(stem).mean((2, 3)).to(torch.float32)


def few(num_classes: int, width: int = 4) -> nn.Module:
    """A function that needs no shape of the input."""
    return Small(num_classes, width)


def handed_on(*, progress: bool = True, **kwargs: object) -> Small:
    """A function as those of torchvision: the class takes what it is given."""
    return Small(**kwargs)  # type: ignore[arg-type]


def system(command: str) -> int:
    """A function that makes no model."""
    raise AssertionError(f"called with {command}")


class Gradual(Small):
    """Reads numbers from tensors while it is built, as libraries do for the rates of stochastic depth."""

    def __init__(self, num_classes: int = 10, width: int = 8):
        super().__init__(num_classes, width, dropout=[rate.item() for rate in torch.linspace(0, 0.1, 3)][-1])
