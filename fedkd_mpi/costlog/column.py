"""One column of a cost log's tables."""

from __future__ import annotations

from typing import NamedTuple


class Column(NamedTuple):
    """One dataset: its type, unit and meaning.

    `dtype` is a NumPy type name; "S" with a number is UTF-8 text of that length, "S" alone is as long as the longest
    value. `axis` names the second dimension: layer, component, mpi_rank or class; "" means that there is none.
    """

    dtype: str
    unit: str
    description: str
    axis: str = ""


def index(description: str) -> Column:
    """Return a column of indices."""
    return Column("int64", "index", description)


def count(unit: str, description: str, axis: str = "") -> Column:
    """Return a column of whole numbers in a unit."""
    return Column("int64", unit, description, axis)


def bytes_of(description: str, axis: str = "") -> Column:
    """Return a column of bytes."""
    return Column("int64", "bytes", description, axis)


def seconds(description: str, axis: str = "") -> Column:
    """Return a column of seconds."""
    return Column("float64", "seconds", description, axis)


def number(unit: str, description: str, axis: str = "") -> Column:
    """Return a column of numbers in a unit."""
    return Column("float64", unit, description, axis)
