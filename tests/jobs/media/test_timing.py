"""Timelines: constant rates made even, variable ones kept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.media.timing import timeline


@given(st.integers(2, 200), st.floats(1, 120))
def test_frames_at_a_steady_rate_are_evenly_spaced(count: int, fps: float) -> None:
    made = timeline([7 + round(i / fps, 3) for i in range(count)], 7 + count / fps)
    assert list(made.times) == pytest.approx([i / made.fps for i in range(count)])
    # Times in whole milliseconds: half of one at either end of the clip.
    assert made.fps == pytest.approx(fps, rel=0.001 * fps)


def test_a_variable_rate_keeps_its_times() -> None:
    made = timeline([2.0, 2.1, 2.2, 2.8], 3.0)
    assert made.times == pytest.approx((0.0, 0.1, 0.2, 0.8))
    assert (made.end, made.fps) == pytest.approx((1.0, 4.0))


def test_a_last_frame_that_lingers_is_shown_to_the_end() -> None:
    made = timeline([0.0, 0.1, 0.2, 0.3], 1.0)
    assert made.times == (0.0, 0.1, 0.2, 0.3)
    assert made.end == 1.0


def test_one_frame_is_a_clip_too() -> None:
    assert timeline([0.0], 0.5).fps == 2.0
    assert timeline([3.0], None).fps == 16.0


@given(
    st.lists(st.floats(0, 5), min_size=1, max_size=50),
    st.none() | st.floats(0, 300),
)
def test_no_frame_is_lost_or_moved_before_another(gaps: list[float], end: float | None) -> None:
    made = timeline([sum(gaps[:n]) for n in range(len(gaps))], end)
    assert len(made.times) == len(gaps)
    assert made.times[0] == 0
    assert list(made.times) == sorted(made.times)
    assert made.end > made.times[-1]
