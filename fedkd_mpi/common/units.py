"""Bytes and seconds as readable text with units."""

from __future__ import annotations


def bytes_text(count: float) -> str:
    """Return a number of bytes in decimal units, e.g. 1.23 MB (1 kB = 1000 bytes)."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


def seconds_text(seconds: float) -> str:
    """Return a duration in the largest unit of which it has at least one, e.g. 13 ms, 4.2 s, 13.5 min, 2.1 h, 3.0 d."""
    if abs(seconds) < 1:
        return f"{1000 * seconds:.0f} ms"
    for unit, size, following in (("s", 1, 60), ("min", 60, 3600), ("h", 3600, 86400)):
        if abs(seconds) < following:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 86400:.1f} d"
