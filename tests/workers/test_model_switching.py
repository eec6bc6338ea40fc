"""Several models on a device that holds one: who is loaded, who waits, what the jobs are told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from engine_harness import CPU, claimed
from fake_pipeline import FakePipeline, fake_spec
from switching_harness import LOAD_SECONDS, PATIENCE, Scene

from config.model_spec import ModelSpec
from jobs.errors import StoreUnavailable
from jobs.types import ClaimedJob, ModelLoad, Priority, Stage, Status, Verdict
from models.errors import CheckpointError
from workers.device import Device
from workers.isolation import MADE_ROOM
from workers.load_speeds import LoadSpeeds
from workers.model_choice import GRACE_SECONDS
from workers.model_switching import CLAIMED_AHEAD, NOT_LOADED
from workers.residency import Residents


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_what_fits_is_loaded_at_the_start_in_order_and_the_rest_is_cold(tmp_path: Path) -> None:
    scene = Scene(tmp_path, budget=250)
    assert scene.loaded == ["a", "b"]
    assert (*scene.residents.pipelines, *scene.residents.cold) == ("a", "b", "c")
    assert set(scene.residents.cold) == {"c"}


def test_when_everything_fits_everything_is_loaded_and_no_queue_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(tmp_path, budget=300)
    monkeypatch.setattr(scene.queues, "oldest_waiting", lambda *_: pytest.fail("it looks"))
    scene.go_on(seconds=5)
    assert scene.resident == {"a", "b", "c"}


def test_a_model_larger_than_the_budget_is_tried_alone(tmp_path: Path) -> None:
    assert Scene(tmp_path, budget=10).loaded == ["a"]


def test_an_idle_worker_loads_what_waits_in_place_of_the_least_recently_used(
    tmp_path: Path,
) -> None:
    scene = Scene(tmp_path, budget=200)
    job, recent = claimed(model="c"), claimed(model="a")
    scene.queues.put(recent)
    scene.go_on(seconds=2)
    scene.queues.put(job)
    scene.go_on(seconds=GRACE_SECONDS + LOAD_SECONDS + 2)
    assert scene.resident == {"a", "c"}
    assert scene.sink.status(job) is Status.SUCCEEDED
    assert set(scene.residents.cold) == {"b"}


def test_a_job_of_another_worker_s_model_is_left_alone_for_a_moment(scene: Scene) -> None:
    scene.queues.put(claimed(model="b"))
    scene.switching.consider(scene.engine)
    assert scene.resident == {"a"}


def test_the_jobs_that_wait_see_bytes_and_seconds_of_the_load(scene: Scene) -> None:
    jobs = [claimed(model="b") for _ in range(CLAIMED_AHEAD)]
    beyond = claimed(model="b")
    scene.queues.put(*jobs, beyond)
    scene.go_on(seconds=20)
    assert scene.queues.told == [(beyond, ModelLoad(bytes=100, eta_seconds=LOAD_SECONDS))]
    for job in jobs:
        assert scene.sink.stages(job)[:2] == [Stage.LOADING, Stage.ENCODING]
        first = scene.sink.of(job)[0]
        assert first.event
        assert first.load == ModelLoad(bytes=100, eta_seconds=LOAD_SECONDS)
        assert scene.sink.status(job) is Status.SUCCEEDED


def test_a_busy_worker_switches_after_its_patience_and_not_before(scene: Scene) -> None:
    for _ in range(100):
        scene.queues.put(claimed(model="a", num_inference_steps=4))
    cold = claimed(model="b")
    scene.queues.put(cold)
    scene.go_on(seconds=PATIENCE - 1)
    assert scene.loaded == ["a"]
    scene.go_on(seconds=PATIENCE)
    assert scene.loaded[:2] == ["a", "b"]
    assert scene.sink.status(cold) is Status.SUCCEEDED
    assert scene.queues.jobs["a"], "it was not idle"


def test_two_models_under_load_take_turns_and_neither_starves(scene: Scene) -> None:
    started = scene.clock()
    jobs = {m: [claimed(model=m, num_inference_steps=2) for _ in range(150)] for m in "ab"}
    for of_model in jobs.values():
        scene.queues.put(*of_model)
    # Every job takes a second: each model has work for 150 s.
    scene.go_on(seconds=200)
    seconds = scene.clock() - started
    for of_model in jobs.values():
        done = [job for job in of_model if scene.sink.status(job) is Status.SUCCEEDED]
        assert len(done) >= 30
    assert 2 <= len(scene.loaded) - 1 <= seconds / PATIENCE


def test_a_model_with_work_is_finished_but_not_fed_before_it_goes(scene: Scene) -> None:
    long = claimed(model="a", num_inference_steps=120)
    more = [claimed(model="a") for _ in range(3)]
    cold = claimed(model="b")
    scene.queues.put(long)
    scene.go_on(seconds=1)
    scene.queues.put(cold)
    scene.go_on(seconds=PATIENCE + 1)
    scene.queues.put(*more)
    scene.go_on(seconds=5)
    assert scene.resident == {"a"}
    assert len(scene.queues.jobs["a"]) == 3
    scene.go_on(seconds=60)
    ends = [scene.sink.order.index(job.id) for job in (long, cold, *more)]
    assert ends == sorted(ends)


def test_only_the_model_that_has_to_go_is_held_back(tmp_path: Path) -> None:
    scene = Scene(tmp_path, budget=200)
    clip = claimed(model="a", priority=Priority.BATCH, num_inference_steps=1000)
    scene.queues.put(clip)
    scene.go_on(seconds=1)
    scene.queues.put(claimed(model="c"))
    for _ in range(45):
        scene.queues.put(claimed(model="b", priority=Priority.INTERACTIVE, num_inference_steps=1))
        scene.go_on(seconds=1)
    assert scene.resident == {"a", "c"}
    assert scene.sink.of(clip)[-1].step > 20
    assert scene.sink.status(clip) is None


def test_a_job_cancelled_while_its_model_loads_is_not_begun(scene: Scene) -> None:
    cancelled, other = claimed(model="b"), claimed(model="b")
    scene.queues.put(cancelled, other)
    load = scene.load

    def cancel_while_loading(spec: ModelSpec, **options: object) -> FakePipeline:
        scene.engine.post(cancelled, Verdict.CANCEL)
        return load(spec, **options)  # type: ignore[arg-type]

    scene.residents._load = cancel_while_loading
    scene.go_on(seconds=15)
    assert scene.sink.status(cancelled) is Status.CANCELLED
    assert scene.sink.stages(cancelled) == [Stage.LOADING]
    assert scene.sink.status(other) is Status.SUCCEEDED


def test_what_is_being_loaded_is_told_from_beginning_to_end_the_start_included(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, str | None, list[str]]] = []
    load = Scene.load

    def look(scene: Scene, spec: ModelSpec, **options: object) -> FakePipeline:
        seen.append((spec.id, scene.notices.loading, [*scene.queues.loads]))
        return load(scene, spec, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Scene, "load", look)
    scene = Scene(tmp_path)
    scene.trouble["c"] = CheckpointError("is cut off")
    scene.queues.put(claimed(model="b"), claimed(model="c"))
    scene.go_on(seconds=PATIENCE + 4 * LOAD_SECONDS)
    assert seen == [(model, model, [model]) for model in "abc"]
    assert (scene.notices.loading, scene.queues.loads) == (None, [])


def test_a_load_goes_on_without_redis(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> int:
        raise StoreUnavailable("Redis is away")

    monkeypatch.setattr(scene.queues, "tell_loading", away)
    monkeypatch.setattr(scene.queues, "tell_loaded", away)
    job = claimed(model="b")
    scene.queues.put(job)
    scene.go_on(seconds=15)
    assert scene.sink.status(job) is Status.SUCCEEDED


def test_a_model_that_cannot_be_loaded_goes_back_with_its_jobs_and_the_others_return(
    scene: Scene,
) -> None:
    scene.trouble["b"] = CheckpointError("vae/model.safetensors: tensor x is cut off")
    bad, good = claimed(model="b"), claimed(model="a")
    scene.queues.put(bad)
    scene.go_on(seconds=5)
    assert scene.queues.requeued == [(bad, NOT_LOADED)]
    assert scene.residents.errors == {"b": "vae/model.safetensors: tensor x is cut off"}
    assert "b" not in {*scene.residents.pipelines, *scene.residents.cold}
    scene.queues.put(good)
    scene.go_on(seconds=15)
    assert scene.sink.status(good) is Status.SUCCEEDED


def test_a_load_that_runs_out_of_memory_is_tried_again_with_nothing_beside_it(
    tmp_path: Path,
) -> None:
    scene = Scene(tmp_path, budget=250)
    load = scene.load

    def only_alone(spec: ModelSpec, **options: object) -> FakePipeline:
        if spec.id == "c" and scene.residents.pipelines:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return load(spec, **options)  # type: ignore[arg-type]

    scene.residents._load = only_alone
    job = claimed(model="c")
    scene.queues.put(job)
    scene.go_on(seconds=2)
    assert [j for j, _ in scene.queues.requeued] == [job]
    scene.queues.put(job)
    scene.go_on(seconds=15)
    assert scene.resident == {"c"}
    assert scene.sink.status(job) is Status.SUCCEEDED


def test_a_job_that_an_earlier_claim_was_granted_for_an_evicted_model_goes_back(
    scene: Scene,
) -> None:
    late = claimed(model="c")
    scene.switching.admit(late, scene.engine)
    assert scene.queues.requeued == [(late, NOT_LOADED)]
    assert scene.engine.is_idle


def test_nothing_is_loaded_for_a_job_that_another_worker_took_first(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scene.queues, "oldest_waiting", lambda *_: {"b": 5.0})
    scene.go_on(seconds=5)
    assert scene.loaded == ["a"]


def suspect(**fields: object) -> ClaimedJob:
    return replace(claimed(**fields), attempt=3)  # type: ignore[arg-type]


def test_no_job_is_claimed_for_a_load_beside_a_suspect(tmp_path: Path) -> None:
    scene = Scene(tmp_path, budget=200)
    alone = suspect(model="a", num_inference_steps=1000)
    scene.queues.put(alone)
    scene.go_on(seconds=1)
    scene.queues.put(*[claimed(model="c") for _ in range(3)])
    scene.go_on(seconds=PATIENCE + 5)
    assert scene.engine.held() == (alone,)
    urgent = claimed(model="c", priority=Priority.INTERACTIVE)
    scene.queues.put(urgent)
    scene.go_on(seconds=PATIENCE - 1)
    assert scene.queues.requeued == [], "jobs that have to wait for the suspect do not hurry it"
    scene.go_on(seconds=LOAD_SECONDS + 5)
    assert scene.queues.requeued == [(alone, MADE_ROOM)]
    assert scene.sink.status(urgent) is Status.SUCCEEDED


def test_a_suspect_of_a_cold_model_is_loaded_for_alone(tmp_path: Path) -> None:
    scene = Scene(tmp_path, budget=200)
    busy = claimed(model="a", num_inference_steps=1000)
    scene.queues.put(busy)
    scene.go_on(seconds=1)
    suspects = [suspect(model="c", num_inference_steps=20) for _ in range(2)]
    scene.queues.put(*suspects)
    scene.go_on(seconds=PATIENCE + LOAD_SECONDS)
    assert scene.queues.requeued == [(busy, MADE_ROOM)]
    assert scene.engine.held() == (suspects[0],)
    scene.go_on(seconds=20)
    assert scene.sink.order == [job.id for job in suspects]


def test_a_suspect_that_comes_up_for_a_load_meets_nobody(tmp_path: Path) -> None:
    for first, left, requeued in (
        (Priority.STANDARD, [1], [0]),
        (Priority.INTERACTIVE, [0, 2], [1]),
    ):
        scene = Scene(tmp_path)
        jobs = [
            claimed(model="b", priority=first),
            suspect(model="b"),
            claimed(model="b", priority=first),
        ]
        scene.queues.put(*jobs)
        scene.clock.wait(1.0)
        scene.switching.consider(scene.engine)
        assert scene.engine.held() == tuple(jobs[i] for i in left)
        assert scene.queues.requeued == [(jobs[i], MADE_ROOM) for i in requeued]


class Measuring(Device):
    """Tells how much of it is taken: more with every look."""

    looks = 0

    def memory_bytes(self) -> dict[str, int]:
        type(self).looks += 1
        return {"allocated": 1_000 * self.looks**2}


def test_only_the_measured_bytes_of_resident_models_are_told(tmp_path: Path) -> None:
    specs = [fake_spec("a"), fake_spec("b")]

    def residents(device: Device) -> Residents:
        return Residents(
            device,
            tmp_path / "digests.json",
            LoadSpeeds(tmp_path / "load_speeds.json", "cpu"),
            budget_bytes=10_000,
            load=lambda spec, **_: FakePipeline(spec),
            weigh=lambda spec: 100,
        )

    on_cpu, on_gpu = residents(CPU), residents(Measuring("cpu", "float32"))
    for both in (on_cpu, on_gpu):
        both.load(specs)
    assert on_cpu.measured_bytes() == {}
    assert on_gpu.measured_bytes() == {"a": 3_000, "b": 7_000}
    del on_gpu.pipelines["a"]
    assert on_gpu.measured_bytes() == {"b": 7_000}
