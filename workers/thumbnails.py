"""Small JPEGs of what a job makes: previews while it runs, a thumbnail and a frame strip after.

Pictures or a clip's frames come in, one JPEG goes out. A thumbnail stands for an output in a list,
a frame strip shows how a clip moves without playing it.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from models.pipeline import Clip

if TYPE_CHECKING:
    from PIL.Image import Image

THUMBNAIL = "thumbnail"
FRAMES = "frames"

THUMBNAIL_SIDE = 256
"""Longer side of a thumbnail, and of each frame in a strip, in pixels at most."""

STRIP_FRAMES = 9
"""Frames shown in a strip at most, the first and the last among them."""

STRIP_GAP = 4
"""Pixels of white between two frames of a strip: on a plain ground they would be one picture."""

_QUALITY = 85


def variants(medium: Image | Clip) -> dict[str, bytes]:
    """The JPEGs that go with a finished output, by name: a thumbnail, for a clip also its frames.

    The thumbnail of a clip is its middle frame. Nothing is enlarged.
    """
    if not isinstance(medium, Clip):
        return {THUMBNAIL: _jpeg(_within(medium, THUMBNAIL_SIDE), _QUALITY)}
    from PIL.Image import fromarray

    shown = [fromarray(medium.frames[index]) for index in strip_indices(len(medium.frames))]
    middle = fromarray(medium.frames[len(medium.frames) // 2])
    strip = _sheet([_within(frame, THUMBNAIL_SIDE) for frame in shown], len(shown), STRIP_GAP)
    return {
        THUMBNAIL: _jpeg(_within(middle, THUMBNAIL_SIDE), _QUALITY),
        FRAMES: _jpeg(strip, _QUALITY),
    }


def strip_indices(num_frames: int, most: int = STRIP_FRAMES) -> list[int]:
    """Which frames of a clip its strip shows: all of a short one, else evenly spaced ones."""
    count = min(num_frames, most)
    return [round(i * (num_frames - 1) / max(1, count - 1)) for i in range(count)]


def preview_jpeg(
    images: Sequence[Image],
    *,
    columns: int | None = None,
    side: int = 256,
    max_bytes: int = 16_384,
) -> bytes:
    """One small JPEG showing all `images` (at least one, equally sized) side by side.

    They stand in rows of `columns`, or in a grid about as wide as high. The longer side is `side`
    pixels, shrunk until the JPEG weighs at most `max_bytes`.
    """
    from PIL.Image import Resampling

    columns = columns or next(n for n in range(1, len(images) + 1) if n * n >= len(images))
    sheet = _sheet(images, columns)
    while True:
        scale = side / max(sheet.size)
        size = (max(1, round(sheet.width * scale)), max(1, round(sheet.height * scale)))
        data = _jpeg(sheet.resize(size, Resampling.BICUBIC), 75)
        if len(data) <= max_bytes or side <= 16:
            return data
        side = side * 3 // 4


def _sheet(images: Sequence[Image], columns: int, gap: int = 0) -> Image:
    from PIL.Image import new

    rows = -(-len(images) // columns)
    width, height = images[0].size
    size = (columns * (width + gap) - gap, rows * (height + gap) - gap)
    sheet = new("RGB", size, "white" if gap else "black")
    for index, image in enumerate(images):
        sheet.paste(image, (index % columns * (width + gap), index // columns * (height + gap)))
    return sheet


def _within(image: Image, side: int) -> Image:
    from PIL.Image import Resampling

    scale = min(1.0, side / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image if size == image.size else image.resize(size, Resampling.LANCZOS)


def _jpeg(image: Image, quality: int) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()
