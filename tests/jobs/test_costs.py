"""The cost model: absent until measured, right for what was measured, sensible beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client import REGISTRY
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from jobs import costs
from jobs.costs import CostModel, Shape, estimate_from
from jobs.lease import LeaseClient
from jobs.store import JobStore
from jobs.types import (
    ClaimedJob,
    JobRecord,
    NewJob,
    Outcome,
    Progress,
    Stage,
    StageCosts,
    Status,
    Usage,
)
from jobs.worker_registry import WorkerInfo, announce

MODEL = "test-model"
MakeJob = Callable[..., NewJob]
SMALL = Shape(256, 256, 1, 1, guided=True)
MEASURED = StageCosts(encoding=1.0, step=0.5, device_step=0.25, decoding=2.0, storing=0.5)
REQUEST = {"width": 256, "height": 256, "num_images": 1, "guidance_scale": 4.5}


@pytest.fixture(autouse=True)
def _always_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "FRESH_SECONDS", -1.0)


def request(**changes: Any) -> dict[str, Any]:
    return {"prompt": "x", "num_inference_steps": 4, "seed": 7} | REQUEST | changes


async def run_one(
    store: JobStore,
    worker: LeaseClient,
    make_job: MakeJob,
    sample: StageCosts | None = MEASURED,
    status: Status = Status.SUCCEEDED,
    **changes: Any,
) -> None:
    await store.submit(make_job(input=request(**changes)))
    [job] = worker.claim([MODEL], 1)
    usage = Usage(gpu_seconds=4.0, steps=4)
    assert worker.finish(job, Outcome(status, usage=usage, costs=sample))


def serve(redis_client: Redis, *names: str, **changes: Any) -> None:
    for name in names:
        fields: dict[str, Any] = {"pid": 1, "host": "h", "device": "cpu", "dtype": "float32"}
        announce(redis_client, WorkerInfo(name=name, **fields | {"models": (MODEL,)} | changes))


def step(job: ClaimedJob, eta_seconds: float) -> Progress:
    """The report of its first step of 4."""
    return Progress(job, Stage.DENOISING, 1, 4, eta_seconds=eta_seconds)


def ahead(record: JobRecord) -> tuple[float, float]:
    """Seconds from now to its start and from there to its end."""
    assert record.estimated_start_at is not None
    assert record.estimated_finish_at is not None
    start = (record.estimated_start_at - record.created_at).total_seconds()
    run = record.estimated_finish_at - record.estimated_start_at
    return start, run.total_seconds()


def test_a_measured_shape_is_told_as_measured_for_any_number_of_steps() -> None:
    for steps in (1, 4, 50):
        found = estimate_from({SMALL: MEASURED}, SMALL, steps)
        assert found is not None
        assert found.run_seconds == pytest.approx(3.5 + 0.5 * steps)
        assert found.gpu_seconds == pytest.approx(3.0 + 0.25 * steps)


def test_other_shapes_are_scaled_from_the_nearest_by_pixels_and_guidance() -> None:
    far = StageCosts(encoding=9.0, step=90.0, device_step=90.0, decoding=9.0, storing=9.0)
    measured = {SMALL: MEASURED, Shape(4096, 4096, 1, 1, guided=True): far}
    twice = estimate_from(measured, Shape(256, 256, 1, 2, guided=True), 4)
    assert twice is not None
    assert twice.run_seconds == pytest.approx(1.0 + 2 * (4 * 0.5 + 2.0 + 0.5))
    plain = estimate_from(measured, Shape(256, 256, 1, 1, guided=False), 4)
    assert plain is not None
    assert plain.run_seconds == pytest.approx(1.0 + 4 * 0.25 + 2.0 + 0.5)
    frames = estimate_from(measured, Shape(256, 256, 3, 1, guided=True), 4)
    assert frames is not None
    assert frames.gpu_seconds == pytest.approx(1.0 + 3 * (4 * 0.25 + 2.0))


@pytest.mark.parametrize("shape", [SMALL, Shape(832, 480, 81, 1, guided=False)])
def test_a_shape_comes_back_from_its_text(shape: Shape) -> None:
    assert Shape.parse(str(shape)) == shape


async def test_nothing_is_estimated_before_something_was_measured(
    store: JobStore, redis: AsyncRedis, redis_client: Redis, make_job: MakeJob, worker: LeaseClient
) -> None:
    serve(redis_client, "worker-a")
    model = CostModel(redis)
    assert await model.estimate(MODEL, request(), 4) is None
    await run_one(store, worker, make_job, None)
    await run_one(store, worker, make_job, None, Status.CANCELLED)
    record, _ = await store.submit(make_job(input=request()))
    assert await model.estimate(MODEL, request(), 4) is None
    assert record.estimated_start_at is record.estimated_finish_at is None
    assert [queue.gpu_seconds for queue in (await store.stats()).queues] == [None]


async def test_a_finish_sent_again_is_learned_from_once_and_averages_follow(
    store: JobStore, redis: AsyncRedis, make_job: MakeJob, worker: LeaseClient
) -> None:
    model = CostModel(redis)
    await store.submit(make_job(input=request()))
    [job] = worker.claim([MODEL], 1)
    outcome = Outcome(Status.SUCCEEDED, usage=Usage(gpu_seconds=4.0, steps=4), costs=MEASURED)
    assert worker.finish(job, outcome)
    assert worker.finish(job, outcome)
    doubled = StageCosts(2.0, 1.0, 0.5, 4.0, 1.0)
    await run_one(store, worker, make_job, doubled)
    found = await model.estimate(MODEL, request(), 4)
    assert found is not None
    assert found.run_seconds == pytest.approx(1.5 * (3.5 + 0.5 * 4))
    for _ in range(30):
        await run_one(store, worker, make_job, doubled)
    found = await model.estimate(MODEL, request(), 4)
    assert found is not None
    assert found.run_seconds == pytest.approx(2 * (3.5 + 0.5 * 4), rel=0.01)


async def test_the_shapes_kept_of_a_model_are_bounded(
    store: JobStore, redis_client: Redis, make_job: MakeJob, worker: LeaseClient
) -> None:
    for width in range(300):
        await run_one(store, worker, make_job, width=width + 1)
    assert redis_client.hlen(f"denoised:costs:{MODEL}") == 256


async def test_a_queued_job_is_told_when_it_will_start_and_end(
    store: JobStore, redis_client: Redis, make_job: MakeJob, worker: LeaseClient
) -> None:
    """A job of 4 steps: 4 GPU-seconds, 5.5 s from start to end."""
    await run_one(store, worker, make_job)
    first, _ = await store.submit(make_job(input=request()))
    assert first.estimated_start_at is None, "no worker serves it"
    serve(redis_client, "worker-a")
    second, _ = await store.submit(make_job(input=request()))
    assert ahead(second) == pytest.approx((4.0, 5.5), abs=0.01)
    third, _ = await store.submit(make_job(input=request()))
    assert ahead(third) == pytest.approx((8.0, 5.5), abs=0.01)
    [job] = worker.claim([MODEL], 1)
    worker.report([step(job, 2.5)])
    now = await store.get(second.id)
    assert ahead(now) == pytest.approx((2.5, 5.5), abs=1.0)
    serve(redis_client, "worker-b")
    fourth, _ = await store.submit(make_job(input=request()))
    assert ahead(fourth) == pytest.approx(((2.5 + 8.0) / 2, 5.5), abs=0.01)
    [depth] = (await store.stats()).queues
    assert depth.gpu_seconds == pytest.approx(12.0)
    await store.cancel(second.id)
    [depth] = (await store.stats()).queues
    assert depth.gpu_seconds == pytest.approx(8.0)


async def test_of_very_many_jobs_that_run_some_stand_for_all(
    store: JobStore, redis_client: Redis, make_job: MakeJob, worker: LeaseClient
) -> None:
    await run_one(store, worker, make_job)
    serve(redis_client, "worker-a")
    for number in range(100):
        await store.submit(make_job(id=f"job_{number:03}", input=request()))
    running = worker.claim([MODEL], 20)
    left = [60.0, *[1.0] * 19]
    worker.report([step(job, eta) for job, eta in zip(running, left, strict=True)])
    waiting = await store.get("job_020")
    assert ahead(waiting)[0] == pytest.approx(79.0, abs=10), "so few are all counted"
    running += worker.claim([MODEL], 78)
    worker.report([step(job, 2.5) for job in running])
    waiting = await store.get("job_098")
    assert ahead(waiting)[0] == pytest.approx(98 * 2.5, abs=10)


async def test_only_workers_that_are_there_and_stay_share_what_waits(
    store: JobStore, redis_client: Redis, make_job: MakeJob, worker: LeaseClient
) -> None:
    await run_one(store, worker, make_job)
    serve(redis_client, "living", "dead", "draining", "failed")
    await store.submit(make_job(input=request()))
    second, _ = await store.submit(make_job(input=request()))
    assert ahead(second)[0] == pytest.approx(4.0 / 4, abs=0.01)
    redis_client.delete("rq:worker:dead")
    serve(redis_client, "draining", state="draining")
    serve(redis_client, "failed", models=())
    third, _ = await store.submit(make_job(input=request()))
    assert ahead(third)[0] == pytest.approx(8.0, abs=0.01)
    redis_client.delete("rq:worker:living")
    fourth, _ = await store.submit(make_job(input=request()))
    assert fourth.estimated_start_at is None


async def test_jobs_that_came_before_the_first_measurement_count_with_the_mean(
    store: JobStore, redis_client: Redis, make_job: MakeJob, worker: LeaseClient
) -> None:
    serve(redis_client, "worker-a")
    early = [(await store.submit(make_job(input=request())))[0] for _ in range(4)]
    [job] = worker.claim([MODEL], 1)
    usage = Usage(gpu_seconds=4.0, steps=4)
    worker.finish(job, Outcome(Status.SUCCEEDED, usage=usage, costs=MEASURED))
    start, run = ahead(await store.get(early[-1].id))
    assert (start, run) == pytest.approx((8.0, 5.5), abs=1.0)
    [depth] = (await store.stats()).queues
    assert depth.gpu_seconds == pytest.approx(12.0)


async def test_the_mean_of_a_model_is_that_of_whole_jobs(
    store: JobStore, redis_client: Redis, make_job: MakeJob, worker: LeaseClient
) -> None:
    for _ in range(3):
        await store.submit(make_job(input=request()))
    whole = Usage(gpu_seconds=4.0, steps=4)
    last_step = Usage(gpu_seconds=1.0, steps=1, resumed_steps=3)
    for usage in (whole, last_step):
        [job] = worker.claim([MODEL], 1)
        worker.finish(job, Outcome(Status.SUCCEEDED, usage=usage, costs=MEASURED))
    [depth] = (await store.stats()).queues
    assert depth.gpu_seconds == pytest.approx(4.0)


async def test_how_far_an_estimate_was_off_is_counted(
    store: JobStore, redis_client: Redis, make_job: MakeJob, worker: LeaseClient
) -> None:
    def counted() -> float:
        return REGISTRY.get_sample_value("denoised_eta_error_ratio_count") or 0.0

    serve(redis_client, "worker-a")
    before = counted()
    await run_one(store, worker, make_job)
    assert counted() == before, "there was no estimate"
    await run_one(store, worker, make_job, status=Status.CANCELLED, sample=None)
    assert counted() == before, "its end was nobody's forecast"
    await run_one(store, worker, make_job)
    assert counted() == before + 1
