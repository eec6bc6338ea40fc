"""Clips to files: MP4, WebM or animated WebP with the recipe that reproduces them inside.

`encode_clip` makes the bytes that the engine stores and says which codec is in them. MP4 carries
H.264 where the video library was built with it, else a free codec; WebM carries VP9. Both hold the
recipe as the `comment` tag, animated WebP as the EXIF field UserComment, each as JSON. Equal clips
with equal recipes give equal bytes: one thread, no times, no random ids.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from math import lcm
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workers.exif import exif_with_comment
from workers.outputs import COMMENT

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from models.pipeline import Clip

CLIP_CONTENT_TYPES = {"mp4": "video/mp4", "webm": "video/webm", "webp": "image/webp"}

_LARGEST_DENOMINATOR = 1001  # Of a frame rate: 24000/1001 is the rate shown as 23.976.
_BT709 = 1  # The number of its primaries, its transfer and its matrix (ITU-T H.273).
_LIMITED_RANGE = 1


@dataclass(frozen=True)
class EncodedClip:
    """A file's bytes, the codec inside and the size of the coded picture in pixels.

    A codec that takes only even sizes gets the last row or column twice.
    """

    data: bytes
    codec: str
    width: int
    height: int


@dataclass(frozen=True)
class _Codec:
    """One encoder of the video library: `options` turns a quality of 1 to 100 into its terms."""

    name: str
    encoder: str
    options: Callable[[int], Mapping[str, str]]


def _constant_quality(best: int, worst: int, **fixed: str) -> Callable[[int], Mapping[str, str]]:
    """Options of an encoder whose `crf` runs from `best` at quality 100 to `worst` at 0."""
    return lambda quality: {"crf": str(round(worst + (best - worst) * quality / 100)), **fixed}


# x264's macroblock tree reads memory that nobody wrote, so that equal small clips differ in bytes.
_H264 = (
    _Codec("h264", "libx264", _constant_quality(10, 48, preset="medium", mbtree="0")),
    _Codec(
        "h264",
        "libopenh264",
        lambda quality: {"rc_mode": "quality", "qmin": str(48 - 38 * quality // 100), "qmax": "51"},
    ),
)
_AV1 = _Codec(
    "av1",
    "libsvtav1",
    _constant_quality(12, 62, preset="8", **{"svtav1-params": "lp=1"}),
)
_VP9 = _Codec(
    "vp9",
    "libvpx-vp9",
    _constant_quality(8, 62, deadline="good", **{"cpu-used": "4", "row-mt": "0", "b": "0"}),
)
_VP8 = _Codec(
    "vp8",
    "libvpx",
    _constant_quality(6, 62, deadline="good", **{"cpu-used": "4", "b": "20M"}),
)
_MPEG4 = _Codec(
    "mpeg4",
    "mpeg4",
    lambda quality: {"qmin": str(31 - 29 * quality // 100), "qmax": str(31 - 29 * quality // 100)},
)
_CODECS: Mapping[str, tuple[_Codec, ...]] = {
    "mp4": (*_H264, _AV1, _VP9, _MPEG4),
    "webm": (_VP9, _VP8, _AV1),
}
"""Encoders of each container, the best first; the first that the library has is used."""


def encode_clip(
    clip: Clip, output_format: str, *, quality: int, recipe: dict[str, Any]
) -> EncodedClip:
    """The file of `clip` as `output_format`, one of mp4, webm, webp; `quality` is 1 to 100.

    Colours of MP4 and WebM are BT.709 in limited range, tagged so, at half resolution (4:2:0). The
    frame rate is that of the clip as the nearest fraction with a denominator up to 1001; WebP
    counts in milliseconds, rounded so that errors do not add up. Raises ValueError for another
    format or a clip without frames, RuntimeError when the library has no encoder for it.
    """
    if output_format not in CLIP_CONTENT_TYPES:
        raise ValueError(f"output_format is {output_format!r}, not one of {[*CLIP_CONTENT_TYPES]}")
    if len(clip.frames) == 0:
        raise ValueError("the clip has no frames")
    text = json.dumps(recipe, ensure_ascii=False, separators=(",", ":"))
    height, width = clip.frames.shape[1:3]
    if output_format == "webp":
        return EncodedClip(_animated_webp(clip, quality, text), "webp", width, height)
    codec = codec_of(output_format)
    frames = _even(clip.frames)
    with tempfile.TemporaryDirectory(prefix="denoised-") as folder:
        # Moving the index of an MP4 to the front takes a second pass over a real file.
        path = Path(folder) / f"clip.{output_format}"
        _mux(path, frames, _rate(clip.fps), codec, quality, text)
        data = path.read_bytes()
    return EncodedClip(data, codec.name, frames.shape[2], frames.shape[1])


@cache
def codec_of(output_format: str) -> _Codec:
    """The encoder that files of this format get here. Raises RuntimeError when there is none."""
    import av

    for codec in _CODECS[output_format]:
        try:
            av.Codec(codec.encoder, "w")
        except ValueError:
            continue
        return codec
    raise RuntimeError(f"the video library has no encoder for {output_format}")


def _mux(
    path: Path,
    frames: NDArray[np.uint8],
    rate: Fraction,
    codec: _Codec,
    quality: int,
    comment: str,
) -> None:
    import av
    from av import VideoStream
    from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

    container_options = {"fflags": "+bitexact"}
    if path.suffix == ".mp4":
        container_options["movflags"] = "+faststart"
        # Durations are whole units of this clock: with plain milliseconds 17/16 s would be cut.
        container_options["movie_timescale"] = str(lcm(1000, rate.numerator))
    reformatter = VideoReformatter()
    with av.open(str(path), "w", options=container_options) as container:
        container.metadata[COMMENT] = comment
        stream = container.add_stream(codec.encoder, rate=rate)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height = frames.shape[2], frames.shape[1]
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.options = {**codec.options(quality), "flags": "+bitexact"}
        context.thread_count = 1
        context.time_base = 1 / rate
        context.color_primaries = context.color_trc = context.colorspace = _BT709
        context.color_range = _LIMITED_RANGE
        for index, pixels in enumerate(frames):
            frame = reformatter.reformat(
                av.VideoFrame.from_ndarray(pixels, format="rgb24"),
                format="yuv420p",
                dst_colorspace=Colorspace.ITU709,
                src_color_range=ColorRange.JPEG,
                dst_color_range=ColorRange.MPEG,
                dst_color_trc=_BT709,
                dst_color_primaries=_BT709,
                interpolation=Interpolation.BICUBIC
                | Interpolation.ACCURATE_RND
                | Interpolation.FULL_CHR_H_INP
                | Interpolation.BITEXACT,
                threads=1,
            )
            frame.pts = index
            frame.time_base = 1 / rate
            frame.duration = 1
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _animated_webp(clip: Clip, quality: int, text: str) -> bytes:
    from PIL import Image

    ends = [round(1000 * (index + 1) / clip.fps) for index in range(len(clip.frames))]
    durations = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    first, *rest = (Image.fromarray(frame) for frame in clip.frames)
    file = io.BytesIO()
    first.save(
        file,
        "WEBP",
        save_all=True,
        append_images=rest,
        duration=durations,
        loop=0,
        quality=quality,
        exif=exif_with_comment(text.encode()),
    )
    return file.getvalue()


def _even(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Frames of even width and height: where a side is odd its last pixels are repeated."""
    height, width = frames.shape[1:3]
    if height % 2 == 0 and width % 2 == 0:
        return frames
    return np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def _rate(fps: float) -> Fraction:
    return Fraction(fps).limit_denominator(_LARGEST_DENOMINATOR)
