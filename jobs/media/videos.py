"""Clips in MP4, MOV, WebM and MKV files, read by FFmpeg through PyAV, one frame after the other.

Frames come out upright, with square pixels, all of one size, and flattened on white.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace
from av.video.stream import VideoStream
from numpy.typing import NDArray

from jobs.media import matroska
from jobs.media.info import MediaError, MediaLimits
from jobs.media.pictures import flatten, shrunk_size

CODECS = (
    "h264", "hevc", "av1", "vp9", "vp8", "mpeg4", "mjpeg", "prores", "ffv1", "qtrle", "png",
)  # fmt: skip
"""What is decoded, by FFmpeg's names. Rarer codecs are rarely needed and rarely tested."""

# FFmpeg's own decoders drop the alpha plane of these.
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
_UNSPECIFIED = 2
_HD_HEIGHT = 720
"""From here up, clips that do not say so are in BT.709 colours, by general convention."""

_MISSING_SHARE = 0.05
_MISSING_FRAMES = 2
"""A clip that ends this much before the length that its file declares has been cut off."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One decoded frame and its place in time: seconds, with an end where the file has one."""

    start: float
    end: float | None
    picture: VideoFrame


class Clip:
    """An open clip. `width` and `height` are those of the frames that `pixels` makes.

    `is_whole` says that no part of the file is missing, so that its frames need not prove it.
    """

    def __init__(
        self, container: Any, limits: MediaLimits | None, *, is_whole: bool = False
    ) -> None:
        stream: VideoStream | None = container.streams.best("video")
        if stream is None:
            raise MediaError("has no video in it")
        self._container = container
        self._stream = stream
        self._is_whole = is_whole
        self.declared_frames = stream.frames
        codec = stream.codec_context
        name = codec.codec.canonical_name if codec is not None else "unknown"
        if name not in CODECS:
            raise MediaError(f"is coded in {name}; accepted codecs are {', '.join(CODECS)}")
        self._decoder: Any = codec
        if stream.metadata.get("alpha_mode") == "1" and name in _ALPHA_DECODERS:
            self._decoder = av.CodecContext.create(_ALPHA_DECODERS[name], "r")
        # One thread: an upload must not take every core, and few threads need little memory.
        self._decoder.thread_count = 1
        if limits is not None:
            check_pixels(codec.width, codec.height, limits)
        self.rotation = 0
        self.has_alpha = False
        self.width = self.height = 0

    def frames(self) -> Iterator[Frame]:
        """Every frame in the order shown. Sets the clip's properties with the first one."""
        rate = float(self._rate)
        ended = start = 0.0
        for index, picture in enumerate(self._pictures()):
            if index == 0:
                self._describe(picture)
            moment = picture.time if picture.time is not None else index / rate
            start = moment if index == 0 else max(start, moment)
            length = float(picture.duration * (picture.time_base or 0))
            yield Frame(start, start + length if length else None, picture)
            ended = start + (length or 1 / rate)
        self._check_complete(ended, rate)

    def starts(self, max_frames: int) -> tuple[list[float], float | None]:
        """When the first `max_frames` frames start and the last of them ends, as `frames` has it.

        Read from the container alone: nothing is decoded, and `frames` gives nothing afterwards.
        """
        found: list[tuple[float, float]] = []
        for packet in self._container.demux(self._stream):
            if packet.size and not packet.is_discard:
                stamp = packet.pts if packet.pts is not None else packet.dts
                base = packet.time_base or Fraction(0)
                moment = float(stamp * base) if stamp is not None else len(found) / self._rate
                found.append((float(moment), float((packet.duration or 0) * base)))
        # Packets come in the order of decoding.
        found.sort()
        starts = [start for start, _ in found]
        if len(found) > max_frames:
            return starts[:max_frames], starts[max_frames]
        last, length = found[-1] if found else (0.0, 0.0)
        return starts, self.end_of_last(last + length if length else None)

    def end_of_last(self, end: float | None) -> float | None:
        """When the last frame ends: at `end` by its own length, or as long as the file lasts.

        Matroska gives no length with most frames; one that is held shows in the whole's.
        """
        if not self._is_whole or self._declared is None:
            return end
        return max(end or 0.0, self._declared)

    def pixels(self, picture: VideoFrame, *, max_pixels: int | None = None) -> NDArray[np.uint8]:
        """Colours uint8 [height, width, 3], shrunk so as not to exceed `max_pixels`."""
        turned = self.rotation % 180 != 0
        width, height = shrunk_size(self.width, self.height, max_pixels)
        if turned:
            width, height = height, width
        colours = picture.reformat(
            width=width,
            height=height,
            format="rgba" if self.has_alpha else "rgb24",
            src_colorspace=_colorspace(picture),
            interpolation="BICUBIC",
        ).to_ndarray()
        if self.has_alpha:
            colours = flatten(colours)
        return np.ascontiguousarray(np.rot90(colours, self.rotation // 90))

    def _pictures(self) -> Iterator[VideoFrame]:
        # The last packet is empty and brings out what the decoder still holds.
        for packet in self._container.demux(self._stream):
            yield from self._decoder.decode(packet)

    def _describe(self, picture: VideoFrame) -> None:
        aspect = self._stream.sample_aspect_ratio or Fraction(1)
        stored = (max(1, round(picture.width * aspect)), picture.height)
        # Quarter turns only: a canvas has no place for others, and no camera writes them.
        self.rotation = round(picture.rotation / 90) * 90 % 360
        self.width, self.height = stored[::-1] if self.rotation % 180 else stored
        self.has_alpha = any(part.is_alpha for part in picture.format.components)

    @property
    def _rate(self) -> Fraction:
        return self._stream.average_rate or Fraction(16)

    @property
    def _declared(self) -> float | None:
        """When the last frame ends by what the container says of the whole, in seconds."""
        stream = self._stream
        if stream.duration is not None and stream.time_base is not None:
            return float((stream.start_time or 0) + stream.duration) * float(stream.time_base)
        if self._container.duration is not None and len(self._container.streams) == 1:
            return float(self._container.duration / av.time_base)
        return None

    def _check_complete(self, ended: float, rate: float) -> None:
        declared = self._declared
        if self._is_whole or declared is None:
            return
        missing = declared - ended
        if missing > max(_MISSING_SHARE * declared, _MISSING_FRAMES / rate):
            raise MediaError(
                f"is cut off: its frames end after {max(0.0, ended):.2f} of {declared:.2f} seconds"
            )


@contextmanager
def open_clip(path: Path, format_: str, limits: MediaLimits | None = None) -> Iterator[Clip]:
    """The clip in `path`. Raises `MediaError`, here or while its frames are read."""
    with path.open("rb") as file:
        is_whole = format_ == "matroska" and matroska.check_whole(file)
        try:
            with av.open(file, format=format_, metadata_errors="replace") as container:
                yield Clip(container, limits, is_whole=is_whole)
        except (MediaError, MemoryError):
            raise
        except Exception as error:
            # A broken file makes FFmpeg's bindings raise whatever they stumble over.
            raise MediaError("cannot be decoded: it is damaged or cut off") from error


def check_pixels(width: int, height: int, limits: MediaLimits) -> None:
    """Raises `MediaError` when a frame of this size may not be decoded."""
    if width < 1 or height < 1:
        raise MediaError("has no pixels")
    if width * height > limits.max_pixels:
        raise MediaError(
            f"has {width} x {height} pixels; at most {limits.max_pixels} a frame are accepted"
        )


def _colorspace(picture: VideoFrame) -> Colorspace | None:
    if picture.colorspace == _UNSPECIFIED and picture.format.name.startswith("yuv"):
        return Colorspace.ITU709 if picture.height >= _HD_HEIGHT else Colorspace.ITU601
    return None
