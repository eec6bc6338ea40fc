"""How sizes, lengths and frame rates left open follow from the files of a clip's input."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.media.info import MediaInfo
from jobs.schema import resolve_input
from tests.video_inputs import CLIP, FAST, PICTURE, SHORT, WIDE, resolved
from tests.video_spec import VIDEO_SPEC as SPEC


@pytest.mark.parametrize(
    ("given_frames", "frames"),
    [(1, 1), (2, 1), (3, 5), (4, 5), (5, 5), (6, 5), (7, 9), (16, 17), (32, 33), (33, 33)],
)
def test_any_number_of_frames_is_rounded_to_the_nearest_that_fits(
    given_frames: int, frames: int
) -> None:
    assert resolved(num_frames=given_frames)["num_frames"] == frames


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({}, (96, 64)),
        # 3 : 2 as the default has it.
        ({"first_frame": PICTURE}, (96, 64)),
        # 4 : 1 within 96 x 64: 156.8 x 39.2, on a grid of 16.
        ({"control_video": WIDE}, (160, 32)),
        ({"control_video": WIDE, "width": 128}, (128, 32)),
        ({"control_video": WIDE, "height": 64}, (256, 64)),
        ({"control_video": WIDE, "width": 64, "height": 64}, (64, 64)),
        # 300 x 200 that grows by as much to the right is 3 : 1.
        ({"video": CLIP, "outpaint": {"right": 1}}, (128, 48)),
        # An image for the mask or for reference says nothing about the clip's shape.
        ({"reference_images": [PICTURE], "control_video": WIDE}, (160, 32)),
        ({"width": 256}, (256, 176)),
    ],
)
def test_sizes_left_open_follow_the_source_within_the_default_area(
    fields: dict[str, Any], size: tuple[int, int]
) -> None:
    made = resolved(**fields)
    assert (made["width"], made["height"]) == size


@given(st.integers(1, 10_000), st.integers(1, 10_000))
@settings(deadline=None)
def test_no_shape_of_a_source_leads_outside_the_limits(width: int, height: int) -> None:
    info = MediaInfo(kind="image", content_type="image/png", width=width, height=height)
    made = resolve_input(SPEC, {"prompt": "x", "first_frame": PICTURE}, {PICTURE: info})
    assert 32 <= made["width"] <= 256
    assert 32 <= made["height"] <= 256
    assert made["width"] % 16 == made["height"] % 16 == 0
    assert made["width"] * made["height"] <= 256 * 32
    if 0.5 <= width / height <= 2:
        assert made["width"] * made["height"] <= 96 * 64
        assert made["width"] / made["height"] == pytest.approx(width / height, rel=0.4)


@pytest.mark.parametrize(
    ("fields", "num_frames", "fps"),
    [
        ({}, 17, 16.0),
        ({"control_video": WIDE}, 13, 16.0),  # 16 frames, rounded down
        ({"control_video": CLIP}, 33, 16.0),  # 40 frames, the most there may be
        ({"control_video": FAST}, 13, 16.0),  # one second
        ({"control_video": FAST, "fps": 30}, 29, 30.0),
        ({"control_video": FAST, "num_frames": 33}, 33, 16.0),
        ({"video": WIDE, "mask": PICTURE, "control_video": CLIP}, 13, 16.0),
        ({"control_video": WIDE, "frame_policy": "resample"}, 17, 17.0),
        ({"control_video": CLIP, "frame_policy": "resample"}, 33, 13.2),
        ({"control_video": CLIP, "frame_policy": "resample", "fps": 16}, 33, 16.0),
        ({"control_video": CLIP, "frame_policy": "resample", "num_frames": 1}, 1, 1.0),
        ({"frame_policy": "resample"}, 17, 16.0),
        ({"first_clip": SHORT}, 17, 16.0),
        # So large that the default length has no room.
        ({"width": 256, "height": 256}, 5, 16.0),
    ],
)
def test_lengths_left_open_follow_the_source(
    fields: dict[str, Any], num_frames: int, fps: float
) -> None:
    made = resolved(**fields)
    assert (made["num_frames"], made["fps"]) == (num_frames, fps)
