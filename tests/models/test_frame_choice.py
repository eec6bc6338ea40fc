"""Frames chosen by time: at constant rates the nearest, at variable ones what is on show."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.frame_choice import Steady, ending, fitted, played, spread, stretched


@dataclass(frozen=True)
class Uneven:
    """Frames whose starts are given in ticks of 1/16 s."""

    ticks: tuple[float, ...]
    last: float

    @property
    def times(self) -> tuple[float, ...]:
        return tuple(tick / 16 for tick in self.ticks)

    @property
    def end(self) -> float:
        return self.last / 16


BURST = Uneven((0, 1, 2, 3, 60), 61)
"""Four frames at 16 a second, an idle while, and one more."""

uneven = st.lists(st.floats(0.01, 40), min_size=1, max_size=30).map(
    lambda gaps: Uneven(tuple(sum(gaps[:n]) for n in range(len(gaps))), sum(gaps))
)


@pytest.mark.parametrize(
    ("source", "source_fps", "fps", "policy", "expected"),
    [
        (9, 16.0, 16.0, "trim", [0, 1, 2, 3, 4]),
        (9, 32.0, 16.0, "trim", [0, 2, 4, 6, 8]),
        (9, 24.0, 16.0, "trim", [0, 2, 3, 5, 6]),
        (3, 16.0, 16.0, "trim", [0, 1, 2]),
        (2, 8.0, 16.0, "trim", [0, 0, 1, 1]),
        (9, 16.0, 16.0, "resample", [0, 2, 4, 6, 8]),
        (3, 16.0, 16.0, "resample", [0, 0, 1, 2, 2]),
        (1, 16.0, 16.0, "resample", [0, 0, 0, 0, 0]),
    ],
)
def test_sources_are_fitted_in_time(source, source_fps, fps, policy, expected):
    assert fitted(Steady(source, source_fps), 5, fps, policy) == expected


def test_frames_of_a_variable_rate_are_shown_for_as_long_as_the_file_says():
    assert played(BURST, 81, 16.0) == [0, 1, 2] + [3] * 57 + [4]
    # Sixty frames at 30 a second and then one that ends an idle minute: half of them are seen.
    recording = Uneven((*(i * 16 / 30 for i in range(60)), 960), 961)
    shown = played(recording, 81, 16.0)
    assert len(shown) == 81
    assert len(set(shown)) == 33
    assert shown[32:] == [59] * 49


def test_all_of_a_variable_rate_is_spread_over_the_clip():
    assert spread(BURST, 61) == [0, 1, 2] + [3] * 57 + [4]
    assert spread(BURST, 5) == [0, 3, 3, 3, 4]


@pytest.mark.parametrize(("count", "fps"), [(24, 24.0), (30, 30.0), (25, 25.0), (60, 60.0)])
def test_an_ending_has_the_last_frame_last(count, fps):
    shown = ending(Steady(count, fps), 81, 16.0)
    assert len(shown) == len(played(Steady(count, fps), 81, 16.0)) == 16
    assert shown[-1] == count - 1
    assert ending(Steady(count, fps), 4, 16.0) == shown[-4:]


def test_an_ending_of_a_variable_rate_is_what_was_last_on_show():
    assert ending(BURST, 5, 16.0) == [3, 3, 3, 3, 4]
    held = Uneven((0, 1, 2, 3), 60)
    assert ending(held, 5, 16.0) == [3] * 5
    assert ending(held, 60, 16.0) == [0, 1, 2] + [3] * 57


def test_a_mask_is_taken_frame_by_frame_or_stretched_over_the_time_of_its_source():
    assert stretched(Uneven((0, 9, 11), 12), Steady(3, 16.0), [0, 2]) == [0, 2]
    assert stretched(Steady(3, 5.0), Steady(9, 16.0), range(9)) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert stretched(Steady(1, 5.0), Steady(9, 16.0), range(9)) == [0] * 9
    # A mask at a constant rate over a source without one: what is masked at that time.
    assert stretched(Steady(61, 16.0), BURST, range(5)) == [0, 1, 2, 3, 60]


@given(uneven, st.integers(1, 90), st.floats(1, 60))
def test_chosen_frames_are_in_order_and_no_more_than_asked_for(source, num_frames, fps):
    for shown in (
        played(source, num_frames, fps),
        ending(source, num_frames, fps),
        spread(source, num_frames),
    ):
        assert 1 <= len(shown) <= num_frames
        assert shown == sorted(shown)
        assert 0 <= shown[0] <= shown[-1] < len(source.ticks)
    assert played(source, num_frames, fps)[0] == 0
    assert ending(source, num_frames, fps)[-1] == len(source.ticks) - 1
    assert len(spread(source, num_frames)) == num_frames


@given(uneven, st.integers(1, 90), st.floats(1, 60), st.sampled_from(["trim", "resample"]))
def test_what_was_chosen_once_is_not_chosen_from_again(source, num_frames, fps, policy):
    """Readers hand on what is shown; whoever fits that to the clip must find it fitting."""
    shown = fitted(source, num_frames, fps, policy)
    whole = list(range(len(shown)))
    if policy == "trim" or len(shown) == num_frames:
        assert fitted(Steady(len(shown), fps), num_frames, fps, policy) == whole
    assert ending(Steady(len(shown), fps), num_frames, fps) == whole
