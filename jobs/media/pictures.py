"""Pictures and animated pictures, read by Pillow: frames upright and flattened on white.

White is what a transparent part of a mask has to become: there the model is to paint.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from jobs.media.info import MediaError

# Browsers show frames with no or a tiny duration for a tenth of a second.
_SHORTEST_SECONDS = 0.011
_USUAL_SECONDS = 0.1

# EXIF orientations that turn a picture, as degrees counterclockwise.
_ROTATIONS = {3: 180, 4: 180, 5: 270, 6: 270, 7: 90, 8: 90}
_EXIF_ORIENTATION = 0x0112
# How many times as large a picture may be, to each side, where filtering begins; before, whole
# blocks are averaged, which takes a tenth of the time. From 3 on the results are alike to the eye.
_GAP = 3.0


@contextmanager
def open_picture(path: Path, format_: str) -> Iterator[Image.Image]:
    """The picture in `path`, its pixels not yet decoded.

    Raises `MediaError`, here or while its frames are read.
    """
    opened = False
    try:
        with Image.open(path, formats=(format_.upper(),)) as image:
            opened = True
            yield image
    except (MediaError, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise MediaError("has far more pixels than are accepted") from None
    except Exception as error:
        # Decoders raise whatever a broken file makes them stumble over.
        what = "cannot be decoded: it is damaged or cut off"
        raise MediaError(what if opened else f"is not a readable {format_} file") from error


def num_frames(image: Image.Image) -> int:
    """Frames of an animated picture; 1 for a still one, and for JPEGs with previews inside."""
    return 1 if image.format == "MPO" else int(getattr(image, "n_frames", 1))


def rotation(image: Image.Image) -> int:
    """Degrees counterclockwise that the file asks to be turned by."""
    return _ROTATIONS.get(image.getexif().get(_EXIF_ORIENTATION, 1), 0)


def has_alpha(image: Image.Image) -> bool:
    """Whether any part may be transparent."""
    return image.has_transparency_data


def frames(image: Image.Image) -> Iterator[tuple[float, NDArray[np.uint8]]]:
    """Each frame's duration in seconds and its pixels [height, width, 3]."""
    for seconds in durations(image):
        yield seconds, pixels(image)


def durations(image: Image.Image) -> Iterator[float]:
    """How long each frame is shown, in seconds; `pixels` then gives that frame."""
    for index in range(num_frames(image)):
        image.seek(index)
        image.load()
        # WebP and PNG say only after decoding how long a frame is shown.
        seconds = float(image.info.get("duration", 0)) / 1000
        yield seconds if seconds >= _SHORTEST_SECONDS else _USUAL_SECONDS


def shrunk_size(width: int, height: int, max_pixels: int | None) -> tuple[int, int]:
    """The size, or the largest of about the same aspect ratio with at most `max_pixels`."""
    if max_pixels is None or width * height <= max_pixels:
        return width, height
    scale = (max_pixels / (width * height)) ** 0.5
    return max(1, int(width * scale)), max(1, int(height * scale))


def skip_detail(image: Image.Image, size: tuple[int, int]) -> None:
    """Lets the decoder, where it can (JPEG), leave out what is not seen at `size` and above.

    To be called before anything is decoded; `image` then has a size between its own and that.
    """
    if size != image.size:
        image.draft(None, size)


def pixels(image: Image.Image, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """The present frame [height, width, 3], shrunk to `size`, its width and height as it lies in
    the file."""
    if size is not None and size != image.size:
        # First of all, so that nothing else is done to every pixel of a huge picture.
        image = _blendable(image).resize(size, Image.Resampling.BICUBIC, reducing_gap=_GAP)
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):
        # 16 bits of grey, which Pillow would cut off at 255.
        grey = np.asarray(upright).clip(0, 65535).astype(np.float32) / 257
        return np.repeat(grey.round().astype(np.uint8)[..., None], 3, axis=2)
    if upright.has_transparency_data:
        return flatten(np.asarray(upright.convert("RGBA")))
    return np.asarray(upright.convert("RGB"))


def _blendable(image: Image.Image) -> Image.Image:
    """The picture in a mode in which a colour between two others is between them.

    Neither palette indices nor two levels have it, nor does one colour that stands for transparent.
    """
    if image.mode.startswith("I"):
        # Pillow averages no blocks of 16 bits.
        return image.convert("I")
    if image.mode in ("P", "1") or "transparency" in image.info:
        return image.convert("RGBA" if image.has_transparency_data else "RGB")
    return image


def flatten(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Colours uint8 [..., 4] over white: [..., 3]."""
    alpha = rgba[..., 3:].astype(np.uint16)
    over = rgba[..., :3] * alpha + 255 * (255 - alpha)
    return ((over + 127) // 255).astype(np.uint8)
