"""Accepted pictures and clips as arrays, for workers.

What comes out is what `MediaInfo` told when the file was accepted: upright, without alpha, at a
constant frame rate.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from jobs.media import pictures
from jobs.media.info import MediaError
from jobs.media.sniff import sniff
from jobs.media.timing import constant_rate
from jobs.media.videos import open_clip

Pixels: TypeAlias = NDArray[np.uint8]


def decode_image(path: Path) -> Pixels:
    """The picture, uint8 [height, width, 3]. Raises `MediaError` for a clip or a broken file."""
    format_, _ = sniff(path)
    if format_ in ("mov", "matroska"):
        raise MediaError("is a clip; a picture is needed")
    with pictures.open_picture(path, format_) as image:
        return cast("Pixels", next(pictures.frames(image))[1])


def decode_video(
    path: Path, *, max_frames: int, max_pixels: int | None = None
) -> tuple[Pixels, float]:
    """The first `max_frames` frames, uint8 [T, height, width, 3], and frames a second.

    Frames of more than `max_pixels` are shrunk as they come, aspect ratio kept, so that a large
    source for a small canvas does not fill the memory. Raises `MediaError` for a still picture or
    a broken file.
    """
    format_, _ = sniff(path)
    if format_ in ("mov", "matroska"):
        frames, times, end = _clip_frames(path, format_, max_frames, max_pixels)
    else:
        frames, times, end = _picture_frames(path, format_, max_frames, max_pixels)
    if not frames:
        raise MediaError("has no frames")
    indices, fps = constant_rate(times, end)
    return np.stack([frames[index] for index in indices]), fps


def _clip_frames(
    path: Path, format_: str, max_frames: int, max_pixels: int | None
) -> tuple[list[Pixels], list[float], float | None]:
    frames: list[Pixels] = []
    times: list[float] = []
    end: float | None = None
    with open_clip(path, format_) as clip:
        for frame in clip.frames():
            frames.append(clip.pixels(frame.picture, max_pixels=max_pixels))
            times.append(frame.start)
            end = frame.end
            if len(frames) == max_frames:
                break
    return frames, times, end


def _picture_frames(
    path: Path, format_: str, max_frames: int, max_pixels: int | None
) -> tuple[list[Pixels], list[float], float]:
    frames: list[Pixels] = []
    times: list[float] = []
    now = 0.0
    with pictures.open_picture(path, format_) as image:
        if pictures.num_frames(image) == 1:
            raise MediaError("is a still picture; a clip is needed")
        for seconds, pixels in pictures.frames(image, max_pixels=max_pixels):
            frames.append(pixels)
            times.append(now)
            now += seconds
            if len(frames) == max_frames:
                break
    return frames, times, now
