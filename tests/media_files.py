"""Small pictures and clips for tests, well-formed and broken, made by PyAV and Pillow."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

WIDTH, HEIGHT = 48, 32
RED, GREEN, BLUE = (220, 40, 40), (40, 170, 70), (45, 80, 220)


def marked(
    colour: tuple[int, int, int] = RED, width: int = WIDTH, height: int = HEIGHT
) -> NDArray[np.uint8]:
    """A picture of one colour whose upper left quarter is white, so that turns show."""
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:] = colour
    pixels[: height // 2, : width // 2] = 255
    return pixels


def picture(
    format_: str = "PNG", size: tuple[int, int] = (WIDTH, HEIGHT), mode: str = "RGB"
) -> bytes:
    """A picture file, `marked`; with an alpha mode its lower half is transparent."""
    image = Image.fromarray(marked(width=size[0], height=size[1])).convert(mode)
    if mode == "RGBA":
        alpha = np.full((size[1], size[0]), 255, np.uint8)
        alpha[size[1] // 2 :] = 0
        image.putalpha(Image.fromarray(alpha))
    buffer = io.BytesIO()
    image.save(buffer, format_)
    return buffer.getvalue()


def turned_picture(orientation: int) -> bytes:
    """A JPEG that asks viewers to turn it by its EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.fromarray(marked()).save(buffer, "JPEG", exif=exif, quality=95)
    return buffer.getvalue()


def animation(format_: str = "WEBP", count: int = 5, milliseconds: int = 100) -> bytes:
    """An animated picture whose frames grow brighter."""
    frames = [Image.new("RGB", (WIDTH, HEIGHT), (5 * n, 0, 0)) for n in range(count)]
    buffer = io.BytesIO()
    frames[0].save(
        buffer, format_, save_all=True, append_images=frames[1:], duration=milliseconds, loop=0
    )
    return buffer.getvalue()


def slow_animation(count: int, side: int = 2000) -> bytes:
    """A small file that takes long to decode: some twentieth of a second for each of its frames."""
    frames = [Image.new("P", (side, side), n) for n in range(2)]
    buffer = io.BytesIO()
    more = [frames[n % 2] for n in range(1, count)]
    frames[0].save(buffer, "GIF", save_all=True, append_images=more)
    return buffer.getvalue()


def clip(
    path: Path,
    count: int = 9,
    *,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    size: tuple[int, int] = (WIDTH, HEIGHT),
    fps: int = 16,
    times: Sequence[int] | None = None,
    rotation: int | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> bytes:
    """A clip file of `count` frames, `marked`, written to `path` (its suffix is the format).

    `times` are the frames' places in ticks of 1/fps, for a variable rate.
    """
    with av.open(path, "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height = size
        stream.pix_fmt = pixel_format
        stream.codec_context.thread_count = 1
        stream.options = options or {}
        if rotation is not None:
            stream.set_display_rotation(rotation)
        container.start_encoding()
        for index in range(count):
            pixels = marked(width=size[0], height=size[1])
            if pixel_format.startswith("yuva"):
                alpha = np.full((*pixels.shape[:2], 1), 255, np.uint8)
                alpha[size[1] // 2 :] = 0
                frame = av.VideoFrame.from_ndarray(np.concatenate([pixels, alpha], 2), "rgba")
            else:
                frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            frame.pts = index if times is None else times[index]
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path.read_bytes()


def sound(path: Path) -> bytes:
    """A file with sound and no picture."""
    with av.open(path, "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path.read_bytes()
