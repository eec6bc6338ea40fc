"""Accepted pictures and clips as arrays, for workers.

What comes out has the size that `MediaInfo` told when the file was accepted, or fewer pixels where
that many are of no use; it is upright and without alpha. Of a clip the times of its frames are read
first; whoever asks chooses by them, and only what was chosen is turned into pixels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, repeat
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from jobs.media import pictures
from jobs.media.info import MediaError
from jobs.media.sniff import Format, sniff
from jobs.media.timing import Timeline, timeline
from jobs.media.videos import Frame, open_clip

Pixels: TypeAlias = NDArray[np.uint8]
Choice: TypeAlias = Callable[[Timeline], Sequence[int]]

ROUNDING = 1e-6
"""Seconds by which equal times may differ."""


def decode_image(path: Path, *, max_pixels: int | None = None) -> Pixels:
    """The picture, uint8 [height, width, 3].

    One of more than `max_pixels` is shrunk, aspect ratio kept, before anything else is made of it;
    a JPEG already while it is decoded. Raises `MediaError` for a clip or a broken file.
    """
    format_, _ = sniff(path)
    if format_ in ("mov", "matroska"):
        raise MediaError("is a clip; a picture is needed")
    with pictures.open_picture(path, format_) as image:
        size = pictures.shrunk_size(*image.size, max_pixels)
        pictures.skip_detail(image, size)
        next(pictures.durations(image))
        return pictures.pixels(image, size)


def decode_video(
    path: Path, choose: Choice, *, max_frames: int, max_pixels: int | None = None
) -> tuple[Pixels, Timeline]:
    """The frames that `choose` picks, uint8 [T, height, width, 3], and when the clip's are shown.

    `choose` is asked once, before any pixels are made, and answers with indices of frames,
    ascending; one may come several times. Decoding ends with the last of them. Of a clip with more
    than `max_frames` only so many are seen. Frames of more than `max_pixels` are shrunk as they
    come, aspect ratio kept, so that a large source for a small canvas does not fill the memory.
    Raises `MediaError` for a still picture or a broken file.
    """
    format_, _ = sniff(path)
    is_clip = format_ in ("mov", "matroska")
    read = _clip_starts if is_clip else _picture_starts
    starts, end = read(path, format_, max_frames)
    if not starts:
        raise MediaError("has no frames")
    when = timeline(starts, end)
    chosen = choose(when)
    pixels = _clip_pixels if is_clip else _picture_pixels
    made = pixels(path, format_, [starts[index] for index in chosen], max_pixels)
    return _collected(made, len(chosen)), when


def _collected(frames: Iterator[Pixels], count: int) -> Pixels:
    """`count` frames of one size in one array, written as they come."""
    made: Pixels | None = None
    filled = 0
    for frame in frames:
        if made is None:
            made = np.empty((count, *frame.shape), np.uint8)
        made[filled] = frame
        filled += 1
    if made is None or filled < count:
        raise MediaError("has no frames" if made is None else "is cut off: frames are missing")
    return made


def _clip_starts(path: Path, format_: Format, max_frames: int) -> tuple[list[float], float | None]:
    with open_clip(path, format_) as clip:
        return clip.starts(max_frames)


def _clip_pixels(
    path: Path, format_: Format, moments: Sequence[float], max_pixels: int | None
) -> Iterator[Pixels]:
    """The frames that are on show at `moments`, which are seconds, ascending."""
    waiting = deque(moments)
    with open_clip(path, format_) as clip:
        shown: Frame | None = None
        frames = clip.frames()
        while waiting:
            following = next(frames, None)
            if shown is not None:
                count = 0
                while waiting and (following is None or waiting[0] < following.start - ROUNDING):
                    waiting.popleft()
                    count += 1
                if count:
                    yield from repeat(clip.pixels(shown.picture, max_pixels=max_pixels), count)
            elif following is None:
                return
            shown = following


def _picture_starts(path: Path, format_: Format, max_frames: int) -> tuple[list[float], float]:
    starts: list[float] = []
    now = 0.0
    with pictures.open_picture(path, format_) as image:
        if pictures.num_frames(image) == 1:
            raise MediaError("is a still picture; a clip is needed")
        for seconds in islice(pictures.durations(image), max_frames):
            starts.append(now)
            now += seconds
    return starts, now


def _picture_pixels(
    path: Path, format_: Format, moments: Sequence[float], max_pixels: int | None
) -> Iterator[Pixels]:
    """The frames that start at `moments`, which are seconds, ascending."""
    waiting = deque(moments)
    now = 0.0
    with pictures.open_picture(path, format_) as image:
        size = pictures.shrunk_size(*image.size, max_pixels)
        for seconds in pictures.durations(image):
            if not waiting:
                return
            if waiting[0] < now + seconds - ROUNDING:
                pixels = pictures.pixels(image, size)
                while waiting and waiting[0] < now + seconds - ROUNDING:
                    waiting.popleft()
                    yield pixels
            now += seconds
