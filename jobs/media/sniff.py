"""File formats by their first bytes.

The decoder is chosen here and told what it gets: left to guess, FFmpeg would also open playlists,
which make it read other files and addresses.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from jobs.media.info import ACCEPTED, MediaError

Format = Literal["png", "jpeg", "webp", "gif", "mov", "matroska"]

HEAD_BYTES = 4096
_PICTURE_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"hevc", b"mif1", b"msf1")
# The first atoms of QuickTime files from before there was an `ftyp`.
_QUICKTIME_ATOMS = (b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")


def sniff(path: Path) -> tuple[Format, str]:
    """The format of a file and its content type. Raises `MediaError` for anything not accepted."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if not head:
        raise MediaError("is empty")
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png", "image/png"
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg", "image/jpeg"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "gif", "image/gif"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp", "image/webp"
    if head[4:8] == b"ftyp" and head[8:12] not in _PICTURE_BRANDS:
        return "mov", "video/quicktime" if head[8:12] == b"qt  " else "video/mp4"
    if head[4:8] in _QUICKTIME_ATOMS:
        return "mov", "video/quicktime"
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return "matroska", "video/webm" if b"webm" in head[:64] else "video/x-matroska"
    raise MediaError(f"is of a format that is not accepted; accepted are {ACCEPTED}")
