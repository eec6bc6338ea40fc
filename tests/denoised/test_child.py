"""Pauses between restarts, and the life of a supervised process."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from denoised.child import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, pause_before_restart


def test_the_first_restart_is_almost_at_once():
    assert pause_before_restart(1) == FIRST_PAUSE_SECONDS <= 0.5


@given(st.integers(min_value=1, max_value=10**6))
def test_pauses_grow_to_a_ceiling_and_never_beyond(deaths):
    pause = pause_before_restart(deaths)
    assert pause <= pause_before_restart(deaths + 1) <= LONGEST_PAUSE_SECONDS


def test_a_crash_loop_reaches_the_ceiling():
    assert pause_before_restart(50) == pytest.approx(LONGEST_PAUSE_SECONDS)
