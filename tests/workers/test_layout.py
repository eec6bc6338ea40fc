"""Boxes as a control clip: black outlines on white that move from start to end."""

from __future__ import annotations

import numpy as np
import pytest

from workers.layout import LINE_PIXELS, draw_layout


def black_box(frame: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of what is black."""
    rows, columns = np.nonzero((frame == 0).all(axis=-1))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def test_a_box_moves_and_grows_linearly_and_arrives() -> None:
    box = {"start": [0.0, 0.0, 0.25, 0.5], "end": [0.5, 0.5, 1.0, 1.0]}
    clip = draw_layout([box], num_frames=5, width=64, height=32, fps=16.0)
    assert clip.frames.shape == (5, 32, 64, 3)
    assert clip.fps == 16.0
    assert [black_box(frame) for frame in clip.frames] == [
        (0, 0, 16, 16),
        (8, 4, 28, 20),
        (16, 8, 40, 24),
        (24, 12, 52, 28),
        (32, 16, 64, 32),
    ]


def test_a_box_is_an_outline_of_two_pixels_in_black_on_white() -> None:
    box = {"start": [0.25, 0.25, 0.75, 0.75], "end": [0.25, 0.25, 0.75, 0.75]}
    (frame,) = draw_layout([box], num_frames=1, width=32, height=32, fps=16.0).frames
    expected = np.full((32, 32, 3), 255, dtype=np.uint8)
    expected[8:24, 8:24] = 0
    inner = slice(8 + LINE_PIXELS, 24 - LINE_PIXELS)
    expected[inner, inner] = 255
    np.testing.assert_array_equal(frame, expected)


def test_several_boxes_stand_in_one_frame() -> None:
    boxes = [
        {"start": [0.0, 0.0, 0.5, 0.5], "end": [0.0, 0.0, 0.5, 0.5]},
        {"start": [0.25, 0.25, 1.0, 1.0], "end": [0.25, 0.25, 1.0, 1.0]},
    ]
    clip = draw_layout(boxes, num_frames=2, width=64, height=64, fps=8.0)
    for frame in clip.frames:
        for left, top in ((0, 0), (30, 0), (0, 31), (16, 16), (63, 63), (40, 17)):
            assert (frame[top, left] == 0).all()
        assert (frame[8, 8] == 255).all()
        assert (frame[24, 24] == 255).all()


@pytest.mark.parametrize(
    "corners", [[0.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0], [0, 0, 0.03, 0.03]]
)
def test_a_box_without_room_for_its_outline_still_shows(corners: list[float]) -> None:
    box = {"start": corners, "end": corners}
    (frame,) = draw_layout([box], num_frames=1, width=32, height=32, fps=16.0).frames
    assert (frame == 0).any()
    assert set(np.unique(frame)) == {0, 255}


def test_a_box_without_an_end_stays() -> None:
    box = {"start": [0.25, 0.25, 0.75, 0.75]}
    first, last = draw_layout([box], num_frames=2, width=32, height=32, fps=16.0).frames
    np.testing.assert_array_equal(first, last)
