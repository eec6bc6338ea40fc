"""A plan depends on its seed alone and holds what was asked for."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from tests.chaos.plan import AMPLE_SECONDS, APIS, KEEPERS, OUTAGES, WORKERS, make_plan


def test_the_same_seed_gives_the_same_plan_and_another_one_another() -> None:
    numbers = {"jobs": 200, "kills": 20, "outages": 3}
    assert make_plan(5, **numbers) == make_plan(5, **numbers)
    assert make_plan(5, **numbers).digest == make_plan(5, **numbers).digest
    assert make_plan(5, **numbers).digest != make_plan(6, **numbers).digest


def test_the_digest_is_the_same_on_every_machine() -> None:
    assert make_plan(1, jobs=10, kills=2, outages=1).digest == "5daaa0a59af2"


@pytest.mark.parametrize("seed", range(5))
def test_a_full_run_has_every_blow_and_every_kind_of_job(seed: int) -> None:
    plan = make_plan(seed, jobs=2000, kills=200, outages=5)
    blows = Counter(blow.kind for blow in plan.blows)
    assert blows["kill"] == 200
    assert blows["redis-kill"] + blows["redis-freeze"] == 5
    assert min(blows[kind] for kind in ("stop", "freeze", "clock", "disk-full", "disk-slow")) >= 20
    hit = {blow.target for blow in plan.blows if blow.kind == "kill"}
    assert hit == {*WORKERS, *KEEPERS, *APIS}
    assert len(plan.jobs) == 2000
    endings = Counter(job.ending for job in plan.jobs)
    assert set(endings) == {"succeeded", "worker_lost", "internal", "out_of_memory"}
    assert endings["worker_lost"] == 6
    assert all(plan.count(failure) for failure in ("crash", "hang", "error", "out_of_memory"))
    assert any(job.cancel_after is not None for job in plan.jobs)
    assert {job.deterministic for job in plan.jobs} == {False, True}
    assert {job.api_key for job in plan.jobs} == {None, 0, 1}
    deadlines = {job.deadline_seconds for job in plan.jobs} - {None}
    assert AMPLE_SECONDS in deadlines
    assert min(deadlines) < 4


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("kinds", [("redis-kill", "redis-freeze"), ("disk-full",)])
def test_troubles_of_one_place_do_not_overlap(seed: int, kinds: tuple[str, ...]) -> None:
    plan = make_plan(seed, jobs=1, kills=200, outages=len(OUTAGES))
    spans = [(blow.at, blow.at + blow.seconds) for blow in plan.blows if blow.kind in kinds]
    assert all(before[1] <= after[0] for before, after in pairwise(spans))
