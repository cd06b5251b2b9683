"""What networks of other libraries have in common here: pooled features, a projection to a width, and a new head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedkd_mpi.errors import UserError, one_line
from fedkd_mpi.models.output import Output

# What libraries raise for pictures that do not fit a network.
ERRORS = (RuntimeError, ValueError, AssertionError, IndexError, TypeError, AttributeError, KeyError)


class PictureEncoder(nn.Module):
    """A body that gives one vector per picture, its projection to `width` (None: as it is), and a linear head.

    The hidden feature of equation 5 is the projected vector. `projection` is "linear", a trained map, or "pool", means
    of neighbouring numbers without parameters, as in the libraries that compare personalised federated methods.
    """

    def add_head(self, features: int, num_classes: int, width: int | None, projection: str) -> None:
        """Build projection and head for a body of `features` numbers per picture."""
        width = width or features
        self.hidden_sizes = (width,)
        self.projection: nn.Module = nn.Identity()
        if width != features:
            self.projection = nn.Linear(features, width) if projection == "linear" else nn.AdaptiveAvgPool1d(width)
        self.head = nn.Linear(width, num_classes)

    def outputs(self, features: Tensor, attention: tuple[Tensor, ...] = ()) -> Output:
        """Return logits, hidden feature and attention maps of the body's vectors [N, features]."""
        hidden = self.projection(features)
        return Output(self.head(hidden), (hidden,), attention)

    def require_fit(self, name: str, input_shape: Sequence[int]) -> None:
        """Raise UserError naming the network if it does not take pictures of this shape; nothing on the device meta."""
        if next(self.parameters()).is_meta:
            return
        self.eval()
        try:
            with torch.no_grad():
                self(torch.zeros(1, *input_shape))
        except ERRORS as error:
            raise UserError(f"{name} does not take pictures of {picture(input_shape)}: {one_line(error)}") from None
        finally:
            self.train()


def require_pictures(name: str, input_shape: Sequence[int]) -> None:
    """Raise UserError naming the network if the inputs are no pictures [channels, height, width]."""
    if len(input_shape) != 3:
        raise UserError(f"{name} needs pictures [channels, height, width]; the data have shape {list(input_shape)}")


def picture(input_shape: Sequence[int]) -> str:
    """Return the shape of a picture for people."""
    channels, height, width = input_shape
    return f"{height}x{width} with {channels} channel{'s' * (channels != 1)}"
