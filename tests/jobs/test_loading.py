"""A load is told to the jobs that wait for it: those there, those that come, and no others."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from redis import Redis

from config.settings import Settings
from jobs import keys, lease
from jobs.dead_worker import take_back
from jobs.lease import LeaseClient
from jobs.store import JobStore
from jobs.types import ModelLoad, NewJob, Priority
from jobs.worker_registry import WORKER_TTL_SECONDS, WorkerInfo, announce

MODEL = "test-model"
MakeJob = Callable[..., NewJob]


def info(**fields: object) -> WorkerInfo:
    return WorkerInfo.model_validate(
        {"name": "w", "pid": 1, "host": "h", "device": "cpu", "dtype": "float32"} | fields
    )


def loadings(client: Redis, job_id: str) -> list[dict]:
    """What a job's events say of loads."""
    log = client.xrange(keys.events(job_id))
    events = [json.loads(entry[b"data"]) for _, entry in log]
    told = [event for event in events if "loading" in event]
    for event in told:
        assert (event["type"], event["status"], event["stage"]) == (
            *("job.progress", "queued", "loading"),
        )
        assert event["progress"]["total_steps"] == 4
    return [event["loading"] for event in told]


async def test_jobs_that_wait_are_told_and_nothing_else_happens_to_them(
    store: JobStore,
    worker: LeaseClient,
    redis_client: Redis,
    make_job: MakeJob,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    jobs = [
        make_job(priority=Priority.BATCH),
        make_job(owner="a"),
        make_job(priority=Priority.INTERACTIVE),
        make_job(model="other"),
    ]
    for job in jobs:
        await store.submit(job)
    [running] = worker.claim([MODEL], 1)
    before = [await store.get(job.id, job.owner) for job in jobs]

    def told() -> set[str]:
        of_jobs = {job.id: loadings(redis_client, job.id) for job in jobs}
        assert {json.dumps(load) for loads in of_jobs.values() for load in loads} == {
            json.dumps({"bytes": 100, "eta_seconds": 1.5})
        }
        return {job_id for job_id, loads in of_jobs.items() if loads}

    monkeypatch.setattr(lease, "MOST_TOLD", 1)
    assert worker.tell_loading(MODEL, ModelLoad(100, 1.5)) == 1
    assert len(told()) == 1
    monkeypatch.setattr(lease, "MOST_TOLD", 256)
    assert worker.tell_loading(MODEL, ModelLoad(100, 1.5)) == 2
    assert told() == {job.id for job in jobs[:3]} - {running.id}
    assert [await store.get(job.id, job.owner) for job in jobs] == before


async def test_a_job_submitted_during_a_load_is_told_what_is_left_of_it(
    store: JobStore, worker: LeaseClient, redis_client: Redis, make_job: MakeJob
) -> None:
    worker.tell_loading(MODEL, ModelLoad(10**12, 60.0))
    during, other = make_job(), make_job(model="other")
    await store.submit(during)
    await store.submit(other)
    [told] = loadings(redis_client, during.id)
    assert told["bytes"] == 10**12
    assert 0 < told["eta_seconds"] < 60.0
    assert loadings(redis_client, other.id) == []
    worker.tell_loaded(MODEL)
    await store.submit(after := make_job())
    assert loadings(redis_client, after.id) == []


@pytest.mark.parametrize(("expected", "left"), [(None, None), (0.0, 0.0)])
async def test_seconds_are_unknown_before_a_load_was_measured_and_never_negative(
    store: JobStore,
    worker: LeaseClient,
    redis_client: Redis,
    make_job: MakeJob,
    expected: float | None,
    left: float | None,
) -> None:
    await store.submit(before := make_job())
    worker.tell_loading(MODEL, ModelLoad(7, expected))
    await store.submit(during := make_job())
    for job in (before, during):
        assert loadings(redis_client, job.id) == [{"bytes": 7, "eta_seconds": left}]


@pytest.mark.parametrize("state", ["idle", "busy"])
async def test_nobody_is_told_while_another_worker_has_the_model(
    store: JobStore, worker: LeaseClient, redis_client: Redis, make_job: MakeJob, state: str
) -> None:
    announce(redis_client, info(models=(MODEL,), state=state))
    await store.submit(job := make_job())
    assert worker.tell_loading(MODEL, ModelLoad(100, None)) == 0
    await store.submit(later := make_job())
    assert loadings(redis_client, job.id) == loadings(redis_client, later.id) == []
    announce(redis_client, info(on_demand=(MODEL,), state=state))
    assert worker.tell_loading(MODEL, ModelLoad(100, None)) == 2


@pytest.mark.parametrize("state", ["starting", "draining"])
async def test_a_worker_that_takes_no_jobs_keeps_no_load_from_being_told(
    store: JobStore, worker: LeaseClient, redis_client: Redis, make_job: MakeJob, state: str
) -> None:
    announce(redis_client, info(models=(MODEL,), state=state))
    await store.submit(make_job())
    assert worker.tell_loading(MODEL, ModelLoad(100, None)) == 1


async def test_a_worker_that_was_seen_to_die_keeps_no_load_from_being_told(
    store: JobStore,
    worker: LeaseClient,
    redis_client: Redis,
    settings: Settings,
    make_job: MakeJob,
) -> None:
    announce(redis_client, dead := info(models=(MODEL,), state="busy"))
    await store.submit(make_job())
    assert worker.tell_loading(MODEL, ModelLoad(100, None)) == 0
    take_back(redis_client, settings, dead.name)
    assert worker.tell_loading(MODEL, ModelLoad(100, None)) == 1


async def test_what_a_dead_worker_was_loading_is_forgotten_and_a_living_one_keeps_it(
    worker: LeaseClient, redis_client: Redis
) -> None:
    worker.tell_loading(MODEL, ModelLoad(100, None))
    key = keys.loading(MODEL)
    assert 0 < redis_client.ttl(key) <= WORKER_TTL_SECONDS
    redis_client.expire(key, 5)
    announce(redis_client, info(loading=MODEL))
    assert redis_client.ttl(key) > 5
    redis_client.delete(key)
    announce(redis_client, info(loading=MODEL))
    assert not redis_client.exists(key), "the load had ended"
