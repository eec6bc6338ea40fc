"""Constant frame rates from the times at which frames are shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.media.timing import constant_rate


@given(st.integers(2, 200), st.floats(1, 120))
def test_frames_at_a_steady_rate_stay_as_they_are(count: int, fps: float) -> None:
    times = [round(i / fps, 3) for i in range(count)]
    indices, rate = constant_rate(times, count / fps)
    assert indices == list(range(count))
    # Times in whole milliseconds: half of one at either end of the clip.
    assert rate == pytest.approx(fps, rel=0.001 * fps)


def test_a_frame_that_is_shown_longer_is_shown_more_often() -> None:
    indices, rate = constant_rate([0.0, 0.1, 0.2, 0.8], 1.0)
    assert rate == pytest.approx(4)
    assert indices == [0, 2, 2, 3]


def test_a_last_frame_that_lingers_fills_the_end() -> None:
    indices, rate = constant_rate([0.0, 0.1, 0.2, 0.3], 1.0)
    assert rate == pytest.approx(4)
    assert indices == [0, 3, 3, 3]


def test_one_frame_is_a_clip_too() -> None:
    assert constant_rate([0.0], 0.5) == ([0], 2.0)
    assert constant_rate([3.0], None) == ([0], 16.0)


@given(
    st.lists(st.floats(0.001, 5), min_size=1, max_size=50),
    st.none() | st.floats(0, 300),
)
def test_the_order_of_frames_is_kept_and_their_number_too(
    gaps: list[float], end: float | None
) -> None:
    times = [sum(gaps[:n]) for n in range(len(gaps))]
    indices, rate = constant_rate(times, end)
    assert len(indices) == len(times)
    assert indices == sorted(indices)
    assert indices[0] == 0
    assert set(indices) <= set(range(len(times)))
    assert rate > 0
