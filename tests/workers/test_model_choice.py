"""When models are switched and which ones go: the rules and their bounds."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.model_choice import GRACE_SECONDS, Warm, model_to_load, models_to_evict

seconds = st.floats(0, 1000)
waits = st.dictionaries(st.sampled_from("abcdef"), seconds, max_size=6)


@given(waits, waits, st.booleans(), seconds, st.floats(1, 100))
def test_only_the_model_that_waits_longest_or_since_none_of_its_jobs_was_had_is_ever_loaded(
    waiting: dict[str, float],
    in_vain: dict[str, float],
    is_idle: bool,
    since_switch: float,
    patience: float,
) -> None:
    model = model_to_load(
        waiting, in_vain=in_vain, is_idle=is_idle, since_switch=since_switch, patience=patience
    )
    waits = [min(waiting[m], in_vain.get(m, waiting[m])) for m in waiting]
    if model is not None:
        longest = min(waiting[model], in_vain.get(model, waiting[model]))
        assert longest == max(waits)
        assert is_idle or min(longest, since_switch) >= patience
    elif waiting:
        assert max(waits) < GRACE_SECONDS if is_idle else min(max(waits), since_switch) < patience


@given(waits, seconds, st.booleans(), st.floats(1, 100))
def test_each_model_whose_jobs_cannot_be_had_is_tried_at_most_once_before_another(
    others: dict[str, float], wait: float, is_idle: bool, patience: float
) -> None:
    tried: list[str] = []
    tried_at: dict[str, float] = {}
    for look in range(2_000):
        now = look * 0.25
        model = model_to_load(
            {m: w + now for m, w in (others | {"free": wait}).items()},
            in_vain={m: now - then for m, then in tried_at.items()},
            is_idle=is_idle,
            since_switch=1e9,
            patience=patience,
        )
        if model == "free":
            break
        if model is not None:
            tried.append(model)
            tried_at[model] = now
    assert model == "free"
    assert len(set(tried)) == len(tried)


@given(st.lists(st.floats(0.1, 20), min_size=1, max_size=60), st.floats(1, 50))
def test_a_busy_worker_switches_at_most_once_in_its_patience(
    looks: list[float], patience: float
) -> None:
    now, switched_at, switches = 0.0, float("-inf"), []
    for pause in looks:
        now += pause
        waiting = {"a": now, "b": now / 2}
        if model_to_load(
            waiting, in_vain={}, is_idle=False, since_switch=now - switched_at, patience=patience
        ):
            switches.append(now)
            switched_at = now
    assert all(b - a >= patience for a, b in itertools.pairwise(switches))
    assert bool(switches) == (now >= patience)


warm_models = st.lists(
    st.builds(
        Warm,
        model=st.just(""),
        bytes=st.integers(0, 100),
        last_used=st.floats(0, 100),
        seconds_left=st.none() | st.floats(0, 100),
    ),
    max_size=6,
).map(lambda items: [replace(w, model=f"m{i}") for i, w in enumerate(items)])


@given(warm_models, st.integers(0, 300), st.integers(0, 300))
def test_enough_goes_and_nothing_more(warm: list[Warm], needed: int, budget: int) -> None:
    evicted = models_to_evict(warm, needed=needed, budget=budget)
    sizes = {w.model: w.bytes for w in warm}
    free = budget - sum(sizes.values())
    freed = sum(sizes[m] for m in evicted)
    assert len(set(evicted)) == len(evicted)
    if sum(sizes.values()) and free + sum(sizes.values()) < needed:
        assert {m for m in sizes if sizes[m]} <= set(evicted)
    else:
        assert free + freed >= needed or set(evicted) == set(sizes)
        assert all(free + freed - sizes[m] < needed for m in evicted)


@given(warm_models, st.integers(0, 300), st.integers(0, 300))
def test_a_model_with_work_goes_only_where_all_idle_ones_are_not_enough(
    warm: list[Warm], needed: int, budget: int
) -> None:
    evicted = models_to_evict(warm, needed=needed, budget=budget)
    if any(w.seconds_left is not None and w.model in evicted for w in warm):
        idle = sum(w.bytes for w in warm if w.seconds_left is None)
        assert budget - sum(w.bytes for w in warm) + idle < needed


@pytest.mark.parametrize(
    ("needed", "expected"), [(0, ()), (10, ("old",)), (20, ("old", "new")), (30, ("soon",))]
)
def test_the_least_recently_used_goes_first_and_then_what_is_done_soonest(
    needed: int, expected: tuple[str, ...]
) -> None:
    warm = [
        Warm("late", 30, 9.0, 60.0),
        Warm("new", 10, 5.0, None),
        Warm("soon", 30, 9.0, 2.0),
        Warm("old", 10, 1.0, None),
    ]
    assert models_to_evict(warm, needed=needed, budget=80) == expected
