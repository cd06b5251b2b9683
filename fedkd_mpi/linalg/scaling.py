"""Exact scaling by powers of two, so that the squares of a tensor are within float32's range."""

from __future__ import annotations

import math

from torch import Tensor

ORDINARY = 20  # exponent up to which squares and their sums are well within float32's range


def exponent_of(largest: float) -> int:
    """Return e with 2^(e-1) <= largest < 2^e."""
    return math.frexp(largest)[1]


def ordinary_exponent(largest: float) -> int:
    """Return exponent_of(largest), or 0 if squares and their sums are well within float32's range without scaling."""
    exponent = exponent_of(largest)
    return exponent if abs(exponent) > ORDINARY else 0


def there_and_back(tensor: Tensor, exponent: int) -> Tensor:
    """Return tensor * 2^exponent * 2^-exponent, in which numbers beyond float32's range are lost."""
    return times_power_of_two(times_power_of_two(tensor, exponent), -exponent) if exponent else tensor


def times_power_of_two(tensor: Tensor, exponent: int) -> Tensor:
    """Return tensor * 2^exponent, exact within float32's range.

    It is computed in two steps, because 2^149, needed for denormal tensors, exceeds float32's range.
    """
    half = exponent // 2
    return tensor * 2.0**half * 2.0 ** (exponent - half)
