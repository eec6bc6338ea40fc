"""The format of a file to be written, from its suffix and the other way round."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from denoised.errors import CommandError

FORMATS = {
    ".png": "png",
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".webp": "webp",
    ".mp4": "mp4",
    ".webm": "webm",
}
SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp", "mp4": ".mp4", "webm": ".webm"}


def suffixes_of(formats: Collection[str]) -> list[str]:
    """Every suffix that stands for one of `formats`."""
    return [suffix for suffix, format in FORMATS.items() if format in formats]


def format_of(
    file: Path, option: str, *, allowed: Collection[str] = tuple(SUFFIXES), hint: str = "change it"
) -> str:
    """The format that the suffix of `file` stands for.

    Raises CommandError (exit code 2) naming `option`, and what to do, when it is none of `allowed`.
    """
    format = FORMATS.get(file.suffix.lower())
    if format is None or format not in allowed:
        raise CommandError(
            f"{option}: the suffix {file.suffix!r} is none of {', '.join(suffixes_of(allowed))}; "
            f"{hint}",
            exit_code=2,
        )
    return format
