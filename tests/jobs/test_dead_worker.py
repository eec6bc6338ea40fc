"""A worker whose process was seen to end loses its jobs at once; nobody else loses any."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from redis import Redis

from config.settings import Settings
from jobs import keys
from jobs.checkpoints import checkpoint_key
from jobs.dead_worker import CAUSE, take_back
from jobs.lease import LeaseClient
from jobs.store import JobStore
from jobs.types import (
    Checkpoint,
    ErrorCode,
    NewJob,
    Outcome,
    Progress,
    Stage,
    Status,
    Usage,
    Verdict,
)
from jobs.worker_registry import WorkerInfo, announce

MODEL = "test-model"
MakeJob = Callable[..., NewJob]
MakeWorker = Callable[..., LeaseClient]
DEAD = "here.7.aaaaaa"


@pytest.fixture
def settings(make_settings: Callable[..., Settings]) -> Settings:
    """No lease lapses in these tests."""
    return make_settings(lease_seconds=3600.0)


async def test_a_dead_workers_job_goes_on_at_its_checkpoint_and_its_late_writes_are_refused(
    store: JobStore,
    redis_client: Redis,
    settings: Settings,
    make_job: MakeJob,
    make_worker: MakeWorker,
) -> None:
    dead = make_worker(DEAD)
    record, _ = await store.submit(make_job())
    [job] = dead.claim([MODEL], 1)
    checkpoint = Checkpoint(checkpoint_key(job.id, job.execution_id, 2), 2, f"{2:064x}")
    assert dead.record_checkpoint(job, checkpoint, Usage(gpu_seconds=1, steps=2))
    dead.report([Progress(job, Stage.DENOISING, 3, 4)])

    assert take_back(redis_client, settings, DEAD) == [record.id]

    waiting = await store.get(record.id)
    assert (waiting.status, waiting.attempt, waiting.step) == (Status.QUEUED, 1, 2)
    [*_, (_, entry)] = redis_client.xrange(f"denoised:ev:{record.id}")
    event = json.loads(entry[b"data"])
    assert (event["type"], event["cause"], event["step"]) == ("job.requeued", CAUSE, 2)

    late = Checkpoint(checkpoint_key(job.id, job.execution_id, 3), 3, f"{3:064x}")
    assert dead.report([Progress(job, Stage.DENOISING, 4, 4)]) == [Verdict.LEASE_LOST]
    assert dead.beat([job]) == [Verdict.LEASE_LOST]
    assert not dead.record_checkpoint(job, late, Usage(gpu_seconds=1, steps=3))
    assert not dead.requeue(job, "drained", True, Usage())
    assert not dead.finish(job, Outcome(Status.SUCCEEDED))
    assert await store.get(record.id) == waiting

    [again] = make_worker("here.8.aaaaaa").claim([MODEL], 1)
    assert (again.id, again.attempt, again.checkpoint) == (record.id, 2, checkpoint)
    assert take_back(redis_client, settings, DEAD) == []
    assert (await store.get(record.id)).status is Status.RUNNING


@pytest.mark.parametrize("other", ["there.7.aaaaaa", "here.7.bbbbbb", "here.77.aaaaaa", "here.7"])
async def test_only_the_worker_of_exactly_this_name_loses_its_jobs(
    store: JobStore,
    redis_client: Redis,
    settings: Settings,
    make_job: MakeJob,
    make_worker: MakeWorker,
    other: str,
) -> None:
    for _ in range(3):
        await store.submit(make_job())
    living = make_worker(other)
    [kept] = living.claim([MODEL], 1)
    lost = make_worker(DEAD).claim([MODEL], 2)
    assert sorted(take_back(redis_client, settings, DEAD)) == sorted(job.id for job in lost)
    assert living.report([Progress(kept, Stage.DENOISING, 1, 4)]) == [Verdict.CONTINUE]
    assert living.finish(kept, Outcome(Status.SUCCEEDED))
    assert redis_client.zcard("denoised:wip") == 0


def test_a_dead_worker_is_off_every_list_and_the_others_stay(
    redis_client: Redis, settings: Settings
) -> None:
    for name in (DEAD, "here.8.aaaaaa"):
        announce(
            redis_client,
            WorkerInfo(name=name, pid=7, host="h", device="cpu", dtype="float32", models=(MODEL,)),
        )
    take_back(redis_client, settings, DEAD)
    assert redis_client.keys(f"*{DEAD}*") == []
    for key in redis_client.keys("rq:workers*"):
        assert redis_client.smembers(key) == {b"rq:worker:here.8.aaaaaa"}


def test_why_a_worker_could_serve_nothing_is_still_told_after_its_end(
    redis_client: Redis, settings: Settings
) -> None:
    broken = WorkerInfo(
        name=DEAD, pid=7, host="here", device="cpu", dtype="float32", model_errors={MODEL: "cut"}
    )
    announce(redis_client, broken)
    take_back(redis_client, settings, DEAD)
    [text] = redis_client.hmget(keys.worker(DEAD), "denoised")
    assert WorkerInfo.model_validate_json(text or b"").model_errors == {MODEL: "cut"}


async def test_a_cancel_that_the_dead_worker_had_not_heard_is_honoured(
    store: JobStore,
    redis_client: Redis,
    settings: Settings,
    make_job: MakeJob,
    make_worker: MakeWorker,
) -> None:
    record, _ = await store.submit(make_job())
    worker = make_worker(DEAD)
    worker.claim([MODEL], 1)
    await store.cancel(record.id)
    take_back(redis_client, settings, DEAD)
    assert (await store.get(record.id)).status is Status.CANCELLED
    assert worker.claim([MODEL], 1) == []


async def test_the_last_allowed_death_fails_the_job(
    store: JobStore,
    redis_client: Redis,
    settings: Settings,
    make_job: MakeJob,
    make_worker: MakeWorker,
) -> None:
    record, _ = await store.submit(make_job())
    for number in range(settings.max_attempts):
        make_worker(f"here.{number}.aaaaaa").claim([MODEL], 1)
        take_back(redis_client, settings, f"here.{number}.aaaaaa")
    ended = await store.get(record.id)
    assert (ended.status, ended.attempt) == (Status.FAILED, settings.max_attempts)
    assert ended.error is not None
    assert ended.error.code is ErrorCode.WORKER_LOST
