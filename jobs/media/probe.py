"""Whether a file is a picture or a clip that can be used, found out by decoding all of it once.

Run for untrusted files through `inspector`, in a process of its own.
"""

from __future__ import annotations

from pathlib import Path

from jobs.media import pictures
from jobs.media.info import MediaError, MediaInfo, MediaLimits
from jobs.media.sniff import sniff
from jobs.media.timing import timeline
from jobs.media.videos import check_pixels, open_clip


def probe(path: Path, *, limits: MediaLimits) -> MediaInfo:
    """What `path` holds. Raises `MediaError`, one line that goes after the field's name."""
    format_, content_type = sniff(path)
    if format_ in ("mov", "matroska"):
        return _probe_clip(path, format_, content_type, limits)
    return _probe_picture(path, format_, content_type, limits)


def _probe_picture(path: Path, format_: str, content_type: str, limits: MediaLimits) -> MediaInfo:
    with pictures.open_picture(path, format_) as image:
        check_pixels(*image.size, limits)
        count = pictures.num_frames(image)
        _check_frames(count, limits)
        _check_total(count, *image.size, limits)
        times, now = [], 0.0
        height = width = 0
        for seconds, pixels in pictures.frames(image):
            times.append(now)
            now += seconds
            _check_duration(now if count > 1 else 0.0, limits)
            height, width = pixels.shape[:2]
        facts = {
            "content_type": content_type,
            "width": width,
            "height": height,
            "has_alpha": pictures.has_alpha(image),
            "rotation": pictures.rotation(image),
        }
        if count == 1:
            return MediaInfo.model_validate({"kind": "image", **facts})
        return MediaInfo.model_validate({"kind": "video", **facts, **_length(times, now)})


def _probe_clip(path: Path, format_: str, content_type: str, limits: MediaLimits) -> MediaInfo:
    with open_clip(path, format_, limits) as clip:
        _check_frames(clip.declared_frames, limits)
        times: list[float] = []
        end: float | None = None
        for frame in clip.frames():
            width, height = frame.picture.width, frame.picture.height
            check_pixels(width, height, limits)
            _check_total(max(clip.declared_frames, len(times) + 1), width, height, limits)
            if not times:
                check_pixels(clip.width, clip.height, limits)
                # Proves that this pixel format can be turned into colours.
                clip.pixels(frame.picture)
            times.append(frame.start)
            end = frame.end
            _check_frames(len(times), limits)
            _check_duration((end or frame.start) - times[0], limits)
        if not times:
            raise MediaError("has no frames")
        end = clip.end_of_last(end)
        _check_duration((end or times[-1]) - times[0], limits)
        return MediaInfo.model_validate(
            {
                "kind": "video",
                "content_type": content_type,
                "width": clip.width,
                "height": clip.height,
                "has_alpha": clip.has_alpha,
                "rotation": clip.rotation,
                **_length(times, end),
            }
        )


def _length(times: list[float], end: float | None) -> dict[str, float]:
    when = timeline(times, end)
    return {"num_frames": len(times), "fps": when.fps, "duration_seconds": when.end}


def _check_frames(count: int, limits: MediaLimits) -> None:
    if count > limits.max_frames:
        raise MediaError(f"has more than the {limits.max_frames} frames that are accepted")


def _check_total(count: int, width: int, height: int, limits: MediaLimits) -> None:
    if count * width * height > limits.max_total_pixels:
        raise MediaError(
            f"has too many pixels, all frames together: {count} of {width} x {height} are more "
            f"than the {limits.max_total_pixels} that are accepted"
        )


def _check_duration(seconds: float, limits: MediaLimits) -> None:
    if seconds > limits.max_duration_seconds:
        raise MediaError(
            f"is longer than the {limits.max_duration_seconds:g} seconds that are accepted"
        )
