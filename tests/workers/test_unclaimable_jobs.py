"""Jobs that wait for a cold model and that this worker cannot get hold up no other model."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine_harness import claimed
from switching_harness import LOAD_SECONDS, PATIENCE, Scene

from jobs.types import Status
from workers.model_choice import GRACE_SECONDS


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_an_idle_worker_loads_the_next_model_where_nobody_may_claim_the_oldest_job(
    scene: Scene,
) -> None:
    held_up, free = claimed(model="b"), claimed(model="c")
    scene.queues.held_up = {held_up.id}
    scene.queues.put(held_up)
    scene.go_on(seconds=100)
    assert "b" not in scene.queues.claims
    scene.queues.put(free)
    scene.go_on(seconds=LOAD_SECONDS + 5)
    assert scene.loaded == ["a", "c"]
    assert scene.sink.status(free) is Status.SUCCEEDED
    scene.queues.held_up.clear()
    scene.go_on(seconds=LOAD_SECONDS + 5)
    assert scene.loaded == ["a", "c", "b"]


def test_models_whose_jobs_others_take_first_keep_no_other_from_being_loaded(
    tmp_path: Path,
) -> None:
    scene = Scene(tmp_path, models="abcde")
    lost, free = [claimed(model=m) for m in "bcd"], claimed(model="e")
    scene.queues.taken_first = {job.id for job in lost}
    scene.queues.put(*lost)
    scene.go_on(seconds=5)
    scene.queues.put(free)
    scene.go_on(seconds=GRACE_SECONDS + LOAD_SECONDS + 5)
    assert scene.loaded == ["a", "e"]
    assert scene.sink.status(free) is Status.SUCCEEDED


def times_held_back(scene: Scene, *, seconds: int) -> int:
    """How often its only resident model, which always has jobs waiting, ceases to be fed."""
    times, was_fed = 0, True
    for _ in range(seconds * 4):
        scene.queues.put(claimed(model="a", num_inference_steps=4))
        scene.go_on(seconds=0.25)
        is_fed = bool(scene.switching.claimable())
        times += was_fed and not is_fed
        was_fed = is_fed
    return times


def test_a_busy_model_is_fed_while_nobody_may_claim_what_waits_for_another(scene: Scene) -> None:
    held_up = claimed(model="b")
    scene.queues.held_up = {held_up.id}
    scene.queues.put(held_up)
    assert times_held_back(scene, seconds=5 * int(PATIENCE)) == 0
    assert scene.loaded == ["a"]


def test_a_busy_model_is_held_back_once_in_its_patience_for_jobs_that_others_take_first(
    scene: Scene,
) -> None:
    lost = claimed(model="b")
    scene.queues.taken_first = {lost.id}
    scene.queues.put(lost)
    started = scene.clock()
    times = times_held_back(scene, seconds=5 * int(PATIENCE))
    assert 1 <= times <= (scene.clock() - started) / PATIENCE
    assert scene.loaded == ["a"]
