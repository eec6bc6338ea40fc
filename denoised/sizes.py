"""Sizes of files and of memory as commands print them."""

from __future__ import annotations


def format_size(nbytes: int) -> str:
    """Bytes in the decimal unit that suits them, with two digits behind the point.

    >>> format_size(11_600_000_000)
    '11.60 GB'
    >>> format_size(999)
    '999 bytes'
    """
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if nbytes >= size:
            return f"{nbytes / size:.2f} {unit}"
    return f"{nbytes} bytes"
