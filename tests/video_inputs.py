"""Inputs of clips for tests of what is accepted: stored files by id, and resolving against them."""

from __future__ import annotations

from typing import Any

from jobs.media.info import MediaInfo
from jobs.schema import resolve_input
from tests.video_spec import VIDEO_SPEC as SPEC


def file_id(number: int) -> str:
    return f"file_{number:032x}"


PICTURE, CLIP, WIDE, SHORT, FAST, OTHER = (file_id(n) for n in range(6))


def clip_info(width: int, height: int, num_frames: int, fps: float) -> MediaInfo:
    return MediaInfo(
        kind="video",
        content_type="video/mp4",
        width=width,
        height=height,
        num_frames=num_frames,
        fps=fps,
        duration_seconds=num_frames / fps,
    )


FILES = {
    PICTURE: MediaInfo(kind="image", content_type="image/png", width=300, height=200),
    CLIP: clip_info(300, 200, 40, 16.0),
    WIDE: clip_info(400, 100, 16, 16.0),
    SHORT: clip_info(96, 64, 3, 16.0),
    FAST: clip_info(96, 64, 30, 30.0),
}


def resolved(**fields: Any) -> dict[str, Any]:
    made = resolve_input(SPEC, {"prompt": "x", **fields}, FILES)
    assert resolve_input(SPEC, made, FILES) == made
    return made
