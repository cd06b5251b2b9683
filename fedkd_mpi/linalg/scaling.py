"""Powers of two that are taken out of a tensor before its squares are summed, and put back exactly."""

from __future__ import annotations

import math

from torch import Tensor

ORDINARY = 20  # exponent up to which squares and their sums are in float32's range by far


def exponent_of(largest: float) -> int:
    """Return e with 2^(e-1) <= largest < 2^e."""
    return math.frexp(largest)[1]


def ordinary_exponent(largest: float) -> int:
    """Return exponent_of(largest), or 0 where squares and their sums are in float32's range by far without scaling."""
    exponent = exponent_of(largest)
    return exponent if abs(exponent) > ORDINARY else 0


def there_and_back(tensor: Tensor, exponent: int) -> Tensor:
    """Return tensor * 2^exponent * 2^-exponent: what is left of it where that is beyond float32's range."""
    return times_power_of_two(times_power_of_two(tensor, exponent), -exponent) if exponent else tensor


def times_power_of_two(tensor: Tensor, exponent: int) -> Tensor:
    """Return tensor * 2^exponent, exactly; 2^149, which a denormal tensor needs, is no float32, but each half is."""
    half = exponent // 2
    return tensor * 2.0**half * 2.0 ** (exponent - half)
