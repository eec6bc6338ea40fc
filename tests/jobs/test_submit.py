"""Submitting: one round trip, all or nothing, bounded, and safe to repeat."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from config.settings import Settings
from jobs import scripts
from jobs.errors import IdempotencyConflict, JobNotFound, QueueFull, StoreUnavailable
from jobs.lease import LeaseClient
from jobs.store import DEFAULT_RETRY_AFTER, JobStore
from jobs.types import NewJob, Priority, Status

MakeJob = Callable[..., NewJob]
MakeSettings = Callable[..., Settings]


def calls_of(client: Redis, command: str) -> int:
    statistics: Any = client.info("commandstats")
    return int(statistics.get(f"cmdstat_{command}", {}).get("calls", 0))


async def test_the_record_of_a_submit_is_the_record_in_redis(
    store: JobStore, make_job: MakeJob
) -> None:
    job = make_job(metadata={"order": 17}, deterministic=True, priority=Priority.INTERACTIVE)
    record, created = await store.submit(job)
    assert created
    assert record == await store.get(job.id)
    assert (record.status, record.queue_position) == (Status.QUEUED, 0)
    assert (record.input, record.metadata) == (job.input, {"order": 17})
    assert record.max_attempts == 3


async def test_a_submit_is_one_command(
    store: JobStore, redis_client: Redis, make_job: MakeJob
) -> None:
    await store.submit(make_job())
    redis_client.config_resetstat()
    await store.submit(make_job())
    statistics: Any = redis_client.info("commandstats")
    outside = {name: entry["calls"] for name, entry in statistics.items()}
    assert outside["cmdstat_evalsha"] == 1
    assert "cmdstat_eval" not in outside
    assert "cmdstat_multi" not in outside


async def test_concurrent_submits_share_round_trips(
    store: JobStore, redis: AsyncRedis, monkeypatch: pytest.MonkeyPatch, make_job: MakeJob
) -> None:
    batches: list[int] = []
    original = scripts.run_many_async

    async def counting(redis: AsyncRedis, script: scripts.Script, calls: Any) -> list[Any]:
        batches.append(len(calls))
        return await original(redis, script, calls)

    monkeypatch.setattr(scripts, "run_many_async", counting)
    jobs = [make_job() for _ in range(100)]
    records = await asyncio.gather(*(store.submit(job) for job in jobs))
    assert sum(batches) == 100
    assert len(batches) < 10
    assert [record.id for record, _ in records] == [job.id for job in jobs]
    assert [record.queue_position for record, _ in records] == list(range(100))


async def test_scripts_are_loaded_again_when_redis_forgot_them(
    store: JobStore, redis_client: Redis, make_job: MakeJob
) -> None:
    redis_client.script_flush()
    jobs = [make_job() for _ in range(5)]
    await asyncio.gather(*(store.submit(job) for job in jobs))
    assert (await store.stats()).queued == 5


async def test_a_full_queue_refuses_and_stores_nothing(
    redis: AsyncRedis, redis_client: Redis, make_settings: MakeSettings, make_job: MakeJob
) -> None:
    store = JobStore(redis, make_settings(max_queued_jobs=2))
    for _ in range(2):
        await store.submit(make_job())
    keys_before = set(redis_client.keys("*"))
    refused = make_job(priority=Priority.INTERACTIVE, idempotency_key="k")
    with pytest.raises(QueueFull) as refusal:
        await store.submit(refused)
    assert refusal.value.retry_after == DEFAULT_RETRY_AFTER
    assert set(redis_client.keys("*")) == keys_before
    with pytest.raises(JobNotFound):
        await store.get(refused.id)


async def test_the_wait_for_room_follows_the_pace_of_the_latest_finishes(
    redis: AsyncRedis, redis_client: Redis, make_settings: MakeSettings, make_job: MakeJob
) -> None:
    """However long ago they were: the time since then is nobody's service."""
    store = JobStore(redis, make_settings(max_queued_jobs=1))
    await store.submit(make_job())

    async def wait_told(*finishes: float) -> int:
        redis_client.delete("denoised:finishes")
        redis_client.rpush("denoised:finishes", *finishes)
        with pytest.raises(QueueFull) as refusal:
            await store.submit(make_job())
        return refusal.value.retry_after

    assert await wait_told(1000.0) == DEFAULT_RETRY_AFTER, "one finish is no pace"
    assert await wait_told(1000.0, 1000.0) == 1
    assert await wait_told(1083.0, 1041.5, 1000.0) == 42
    assert await wait_told(1e6, 1000.0) == 600


def job_model(make_job: MakeJob) -> str:
    return make_job().model


async def test_an_idempotency_key_gives_the_first_job_again(
    store: JobStore, make_job: MakeJob
) -> None:
    first, created = await store.submit(make_job(idempotency_key="order", fingerprint="f"))
    again, created_again = await store.submit(make_job(idempotency_key="order", fingerprint="f"))
    assert (created, created_again) == (True, False)
    assert again == first
    assert (await store.stats()).queued == 1


async def test_an_idempotency_key_with_another_request_conflicts(
    store: JobStore, make_job: MakeJob
) -> None:
    first, _ = await store.submit(make_job(idempotency_key="order", fingerprint="f"))
    with pytest.raises(IdempotencyConflict) as conflict:
        await store.submit(make_job(idempotency_key="order", fingerprint="g"))
    assert conflict.value.job_id == first.id
    assert (await store.stats()).queued == 1


async def test_simultaneous_submits_of_one_key_make_one_job(
    store: JobStore, make_job: MakeJob
) -> None:
    answers = await asyncio.gather(
        *(store.submit(make_job(idempotency_key="k", fingerprint="f")) for _ in range(20))
    )
    assert len({record.id for record, _ in answers}) == 1
    assert sum(created for _, created in answers) == 1


async def test_the_key_of_a_deleted_job_is_free_again(store: JobStore, make_job: MakeJob) -> None:
    first, _ = await store.submit(make_job(idempotency_key="k", fingerprint="f"))
    await store.cancel(first.id)
    await store.delete(first.id)
    second, created = await store.submit(make_job(idempotency_key="k", fingerprint="g"))
    assert created
    assert second.id != first.id


async def test_a_submit_sent_twice_is_one_job(store: JobStore, make_job: MakeJob) -> None:
    """What the client does when the connection broke before the answer came."""
    job = make_job()
    first, _ = await store.submit(job)
    second, created = await store.submit(job)
    assert created
    assert second == first
    assert (await store.stats()).queued == 1


async def test_places_count_the_more_urgent_classes(store: JobStore, make_job: MakeJob) -> None:
    await store.submit(make_job(priority=Priority.INTERACTIVE))
    await store.submit(make_job(priority=Priority.STANDARD))
    last, _ = await store.submit(make_job(priority=Priority.BATCH))
    assert last.queue_position == 2
    elsewhere, _ = await store.submit(make_job(model="other-model", priority=Priority.BATCH))
    assert elsewhere.queue_position == 0


async def test_depths_are_counted_by_model_and_class(
    store: JobStore, make_job: MakeJob, worker: LeaseClient
) -> None:
    for _ in range(3):
        await store.submit(make_job())
    await store.submit(make_job(model="other-model", priority=Priority.BATCH))
    worker.claim([job_model(make_job)], 1)
    stats = await store.stats()
    assert (stats.queued, stats.running) == (3, 1)
    depths = {(queue.model, queue.priority): queue for queue in stats.queues}
    mine = depths[(job_model(make_job), Priority.STANDARD)]
    assert (mine.queued, mine.running) == (2, 1)
    assert mine.oldest_seconds is not None
    assert mine.oldest_seconds >= 0
    assert depths[("other-model", Priority.BATCH)].queued == 1


async def test_without_redis_everything_says_so(
    make_settings: MakeSettings, make_job: MakeJob
) -> None:
    from jobs.connections import connect_async

    settings = make_settings(redis_url="unix:///nowhere/redis.sock")
    client = connect_async("unix:///nowhere/redis.sock")
    store = JobStore(client, settings)
    for call in (
        store.submit(make_job()),
        store.get("x"),
        store.list(),
        store.cancel("x"),
        store.delete("x"),
        store.stats(),
        store.ping(),
    ):
        with pytest.raises(StoreUnavailable):
            await call
    await client.aclose()


async def test_a_submission_does_not_search_its_queue(
    store: JobStore, redis_client: Redis, make_job: MakeJob
) -> None:
    """It would take longer the more jobs wait, and hold up everybody else meanwhile."""
    await store.submit(make_job())

    def searches() -> int:
        return redis_client.info("commandstats").get("cmdstat_lpos", {"calls": 0})["calls"]

    before = searches()
    record, _ = await store.submit(make_job())
    assert record.queue_position == 1
    assert searches() == before
    assert (await store.get(record.id)).queue_position == 1
    assert searches() == before + 1
