"""Checks of what a writer is given: names, types, shapes and the sums of bytes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from fedkd_mpi.costlog import files, schema
from fedkd_mpi.costlog.column import Column
from fedkd_mpi.errors import RunFault

LONGEST_TEXT = 2**14  # bytes of a text in a fixed table


def empty(columns: Mapping[str, Column], width: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Return columns without rows; `width` are the lengths of the second dimensions by name."""
    shapes = {name: (0, width[column.axis]) if column.axis else (0,) for name, column in columns.items()}
    return {name: np.zeros(shapes[name], column.dtype) for name, column in columns.items()}


def row(values: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return values as columns of one row."""
    return {name: np.asarray(value)[np.newaxis] for name, value in values.items()}


def checked(name: str, column: Column, given: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Return values in a column's type; raises ValueError if they have another shape or kind.

    Text of a column without a fixed length remains text.
    """
    values = np.asarray(given)
    if values.size == 0 and math.prod(shape) == 0:
        return np.zeros(shape, column.dtype)
    if column.dtype == "S" and values.shape == shape and values.dtype.kind == "U":
        return values
    if values.shape != shape or not np.can_cast(values.dtype, column.dtype, "same_kind"):
        raise ValueError(f"log column {name} is {column.dtype} {list(shape)}, not {values.dtype} {list(values.shape)}")
    return values.astype(column.dtype)


def fixed(table: str, given: Mapping[str, Any] | None) -> dict[str, np.ndarray]:
    """Return the columns of a table of schema.FIXED without second dimensions, without rows if none are given.

    Optional columns may be missing. Texts are cut to LONGEST_TEXT bytes; what is not UTF-8, e.g. in names of files,
    becomes escapes. Raises ValueError on invalid names, shapes or types.
    """
    columns, optional = schema.FIXED[table], schema.optional(table)
    if given is None:
        return empty({name: column for name, column in columns.items() if name not in optional}, {})
    check_names(table, given, columns, optional)
    count = len(next(iter(given.values())))
    found = {
        name: checked(f"{table}/{name}", column, given[name], (count,))
        for name, column in columns.items()
        if name in given
    }
    return {name: _cut(values) if values.dtype.kind == "U" else values for name, values in found.items()}


def _cut(texts: np.ndarray) -> np.ndarray:
    whole = (text.encode(errors="backslashreplace") for text in texts.tolist())
    return np.array([text[:LONGEST_TEXT].decode(errors="ignore") for text in whole], dtype=str)


def check_names(table: str, given: Iterable[str], expected: Iterable[str], optional: Iterable[str] = ()) -> None:
    """Raise ValueError naming what is missing and what is unknown."""
    missing, unknown = sorted(set(expected) - set(given) - set(optional)), sorted(set(given) - set(expected))
    if missing or unknown:
        parts = [f"{word} {', '.join(names)}" for word, names in (("missing", missing), ("unknown", unknown)) if names]
        raise ValueError(f"log table {table}: {'; '.join(parts)}")


def message_bytes(messages: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the bytes of each message as the sum of its parts; `messages` are rows of uplink or downlink."""
    return messages["header_bytes"] + messages["layer_bytes"].sum(axis=1) + messages.get("encryption_bytes", 0)


def check_sums(number: int, rows: files.Tables) -> None:
    """Raise RunFault if the sums of bytes of a round do not agree."""
    rounds, uplink, downlink = rows["rounds"], rows["uplink"], rows["downlink"]
    sums = [name for name in schema.SUMMED if name in uplink]
    agree = {
        "uplink/bytes": (uplink["bytes"] == message_bytes(uplink)).all(),
        "downlink/bytes": (downlink["bytes"] == message_bytes(downlink)).all(),
        **{f"rounds/uplink_{name}": rounds[f"uplink_{name}"][0] == uplink[name].sum() for name in sums},
    }
    if wrong := [name for name, good in agree.items() if not good]:
        raise RunFault(f"round {number + 1} is not logged: {', '.join(wrong)}: not the sum of its parts", round=number)
