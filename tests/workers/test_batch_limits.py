"""The measured batch limit, on made-up devices whose throughput curves are known."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.batch_limits import SAMPLES, BatchLimits

SIZES = (1, 2, 4, 8, 16)
KEY = ("model", 8, 8)


def saturate(
    limits: BatchLimits,
    rates: Mapping[int, float],
    *,
    steps: int,
    noise: random.Random | None = None,
    slow: float = 1.0,
) -> float:
    """Always as many one-image jobs as the limit allows; returns images per second overall."""
    images, seconds = 0, 0.0
    for _ in range(steps):
        size = limits.limit(KEY)
        step = size / rates[size] * slow
        if noise is not None:
            step *= noise.uniform(0.97, 1.03) * (20.0 if noise.random() < 0.02 else 1.0)
        limits.observe(KEY, size, step)
        images, seconds = images + size, seconds + step
    return images / seconds


@st.composite
def curves(draw: st.DrawFn) -> dict[int, float]:
    """Images per second per size; doubling a batch at most halves or doubles the throughput."""
    rates = {1: 10.0}
    for before, size in itertools.pairwise(SIZES):
        rates[size] = rates[before] * draw(st.floats(0.5, 2.0))
    return rates


@given(curves())
@settings(max_examples=40, deadline=None)
def test_a_saturated_engine_is_never_three_percent_worse_than_one_at_a_time(
    rates: dict[int, float],
) -> None:
    assert saturate(BatchLimits(16), rates, steps=4000) >= 0.97 * rates[1]


@given(st.integers(0, 4), st.floats(1.1, 2.0), st.floats(0.5, 0.85))
@settings(max_examples=40, deadline=None)
def test_the_best_size_of_a_single_peaked_curve_is_found(
    peak: int, rise: float, fall: float
) -> None:
    rates = {
        size: 10.0 * rise ** min(i, peak) * fall ** max(0, i - peak) for i, size in enumerate(SIZES)
    }
    limits = BatchLimits(16)
    saturate(limits, rates, steps=100)
    assert limits.limit(KEY) == SIZES[peak]


def test_hiccups_of_the_machine_do_not_move_the_limit() -> None:
    rates = {1: 10.0, 2: 12.0, 4: 14.0, 8: 11.0, 16: 9.0}
    noise, limits, at_best = random.Random(7), BatchLimits(16), 0
    saturate(limits, rates, steps=60, noise=noise)
    for _ in range(2000):
        saturate(limits, rates, steps=1, noise=noise)
        at_best += limits.limit(KEY) == 4
    assert at_best >= 1800


def test_a_first_step_slowed_by_warming_up_is_not_held_against_its_size() -> None:
    limits, rates = BatchLimits(16), {1: 10.0, 2: 18.0, 4: 30.0, 8: 50.0, 16: 80.0}
    met: set[int] = set()
    for _ in range(60):
        size = limits.limit(KEY)
        limits.observe(KEY, size, size / rates[size] * (100.0 if size not in met else 1.0))
        met.add(size)
    assert limits.limit(KEY) == 16


def test_a_device_that_changes_is_measured_anew() -> None:
    limits = BatchLimits(16)
    saturate(limits, {1: 10.0, 2: 8.0, 4: 6.0, 8: 5.0, 16: 4.0}, steps=50)
    assert limits.limit(KEY) == 1
    better = {1: 10.0, 2: 18.0, 4: 30.0, 8: 24.0, 16: 20.0}
    saturate(limits, better, steps=4000)
    assert limits.limit(KEY) == 4


def test_a_throughput_no_better_keeps_the_smaller_and_quicker_batch() -> None:
    limits = BatchLimits(16)
    saturate(limits, dict.fromkeys(SIZES, 10.0), steps=50)
    assert limits.limit(KEY) == 1


def test_jobs_of_several_images_are_measured_too() -> None:
    limits = BatchLimits(16)
    for _ in range(SAMPLES + 1):
        limits.observe(KEY, 5, 1.0)
    assert limits.limit(KEY) == 16


def test_keys_are_measured_apart() -> None:
    limits = BatchLimits(16)
    saturate(limits, {1: 10.0, 2: 18.0, 4: 30.0, 8: 50.0, 16: 80.0}, steps=60)
    assert limits.limit(KEY) == 16
    assert limits.limit("another") == 1


def test_riders_are_free_only_where_the_step_grows_hardly_longer() -> None:
    limits = BatchLimits(16)
    # Seconds per step: 0.1, 0.1, 0.105, 0.2, 0.5.
    saturate(limits, {1: 10.0, 2: 20.0, 4: 38.1, 8: 40.0, 16: 32.0}, steps=60)
    assert limits.limit(KEY) == 8
    assert limits.free(KEY, 1) == 4
    assert limits.free(KEY, 8) == 8


@given(st.integers(1, 40), st.integers(1, 64), st.integers(0, 60))
@settings(deadline=None)
def test_the_limit_stays_within_its_bound_whatever_is_observed(
    maximum: int, images: int, steps: int
) -> None:
    limits = BatchLimits(maximum)
    for _ in range(steps):
        limits.observe(KEY, images, 0.1)
        assert 1 <= limits.limit(KEY) <= maximum


@given(st.integers(2, 16))
@settings(deadline=None)
def test_after_running_out_of_memory_no_larger_batch_is_tried_again(images: int) -> None:
    limits, rates = BatchLimits(16), {size: 10.0 * size for size in SIZES}
    saturate(limits, rates, steps=40)
    limits.shrink(KEY, images)
    for _ in range(1500):
        saturate(limits, rates, steps=1)
        assert limits.limit(KEY) <= images // 2


def test_a_maximum_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        BatchLimits(0)
