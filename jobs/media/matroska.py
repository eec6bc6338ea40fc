"""Whether a Matroska or WebM file has all of its bytes, by the size that its segment declares.

FFmpeg plays what is there of such a file and says nothing when it ends early, and the lengths in it
do not tell either: most frames have none, so that a last one that is held looks like frames that
are missing. Format: RFC 8794 (EBML) and RFC 9559.
"""

from __future__ import annotations

import os
from typing import BinaryIO

from jobs.media.info import MediaError

_SEGMENT = 0x18538067
_MOST_HEAD_ELEMENTS = 8
"""Elements before the segment: a header, and padding perhaps."""


def check_whole(file: BinaryIO) -> bool:
    """Whether the file is known to be whole; one that was streamed does not say.

    Leaves it at its beginning. Raises `MediaError` when bytes are missing.
    """
    size = file.seek(0, os.SEEK_END)
    place = 0
    try:
        for _ in range(_MOST_HEAD_ELEMENTS):
            file.seek(place)
            name, length = _number(file, keep_marker=True), _number(file)
            if name is None or length is None:
                return False
            place = file.tell() + length
            if name == _SEGMENT:
                if place > size:
                    raise MediaError(f"is cut off: it has {size} of {place} bytes")
                return True
        return False
    finally:
        file.seek(0)


def _number(file: BinaryIO, *, keep_marker: bool = False) -> int | None:
    """The next EBML number of 1 to 8 bytes; None at the end, or where it stands for unknown."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    # As many zeros come before the first one as bytes follow.
    more = 8 - first[0].bit_length()
    rest = file.read(more)
    value = int.from_bytes(first + rest, "big")
    if len(rest) < more or keep_marker:
        return value if len(rest) == more else None
    value -= 1 << 7 * (more + 1)
    return None if value == (1 << 7 * (more + 1)) - 1 else value
