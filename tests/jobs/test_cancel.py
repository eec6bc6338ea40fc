"""Cancelling: at once when queued, at the next report when running, never twice, one ending."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from redis import Redis
from rq.job import Job
from rq.serializers import JSONSerializer

from jobs.errors import JobActive, JobNotFound
from jobs.keeper import Keeper
from jobs.lease import LeaseClient
from jobs.store import JobStore
from jobs.types import (
    ClaimedJob,
    ErrorCode,
    ModelLoad,
    NewJob,
    Outcome,
    Output,
    Progress,
    Stage,
    Status,
    Usage,
    Verdict,
)

MODEL = "test-model"
MakeJob = Callable[..., NewJob]
TERMINAL = {b"job.succeeded", b"job.failed", b"job.cancelled"}


def endings(client: Redis, job_id: str) -> list[bytes]:
    kinds = [entry[b"type"] for _, entry in client.xrange(f"denoised:ev:{job_id}")]
    return [kind for kind in kinds if kind in TERMINAL]


async def test_a_queued_job_is_cancelled_at_once(
    store: JobStore, redis_client: Redis, make_job: MakeJob, worker: LeaseClient
) -> None:
    record, _ = await store.submit(make_job())
    cancelled = await store.cancel(record.id)
    assert cancelled.status is Status.CANCELLED
    assert cancelled.finished_at is not None
    assert cancelled.error is not None
    assert cancelled.error.code is ErrorCode.CANCELLED
    assert worker.claim([MODEL], 1) == []
    assert (await store.stats()).queued == 0
    assert await store.cancel(record.id) == cancelled
    assert endings(redis_client, record.id) == [b"job.cancelled"]


async def test_a_running_job_is_told_at_its_next_report_or_heartbeat(
    store: JobStore, redis_client: Redis, make_job: MakeJob, worker: LeaseClient
) -> None:
    await store.submit(make_job())
    [job] = worker.claim([MODEL], 1)
    record = await store.cancel(job.id)
    assert (record.status, record.cancel_requested) == (Status.RUNNING, True)
    assert await store.cancel(job.id) == record
    assert worker.report([Progress(job, Stage.DENOISING, 1, 4)]) == [Verdict.CANCEL]
    assert worker.beat([job]) == [Verdict.CANCEL]
    assert worker.finish(job, Outcome(Status.CANCELLED, usage=Usage(gpu_seconds=0.5, steps=1)))
    ended = await store.get(job.id)
    assert (ended.status, ended.usage.steps) == (Status.CANCELLED, 1)
    assert endings(redis_client, job.id) == [b"job.cancelled"]
    assert redis_client.zcard("denoised:wip") == 0


async def test_a_job_that_waits_for_its_model_is_cancelled_at_once_and_its_worker_hears_of_it(
    store: JobStore, redis_client: Redis, make_job: MakeJob, worker: LeaseClient
) -> None:
    record, _ = await store.submit(make_job())
    redis_client.hset(f"rq:job:{record.id}", "cost", 5)
    [job] = worker.claim([MODEL], 1)
    worker.report([Progress(job, Stage.LOADING, 0, 4, load=ModelLoad(100, None))])
    charged = redis_client.hget("denoised:fair", ""), redis_client.hget(f"rq:job:{job.id}", "cost")
    ended = await store.cancel(job.id)
    assert (ended.status, ended.stage, ended.usage.gpu_seconds) == (Status.CANCELLED, None, 0.0)
    assert endings(redis_client, job.id) == [b"job.cancelled"]
    assert redis_client.zcard("denoised:wip") == 0
    # What its claim had charged its key for it is given back.
    assert charged == (b"5.000000", b"5")
    assert redis_client.hget("denoised:fair", "") == b"0"
    assert worker.beat([job]) == [Verdict.LEASE_LOST]
    assert worker.report([Progress(job, Stage.ENCODING, 0, 4)]) == [Verdict.LEASE_LOST]
    worker.requeue(job, "drained", True, Usage())
    assert await store.cancel(job.id) == ended == await store.get(job.id)


async def test_an_ended_job_stays_as_it_is(
    store: JobStore, make_job: MakeJob, worker: LeaseClient
) -> None:
    await store.submit(make_job())
    [job] = worker.claim([MODEL], 1)
    worker.finish(job, Outcome(Status.SUCCEEDED))
    ended = await store.get(job.id)
    assert await store.cancel(job.id) == ended
    assert ended.status is Status.SUCCEEDED


async def test_a_result_that_comes_in_after_the_request_still_counts(
    store: JobStore, redis_client: Redis, make_job: MakeJob, worker: LeaseClient
) -> None:
    """The request asks the worker to stop; one that had finished already is not relabelled."""
    await store.submit(make_job())
    [job] = worker.claim([MODEL], 1)
    await store.cancel(job.id)
    assert worker.finish(job, Outcome(Status.SUCCEEDED))
    ended = await store.get(job.id)
    assert (ended.status, ended.error) == (Status.SUCCEEDED, None)
    assert await store.cancel(job.id) == ended
    assert endings(redis_client, job.id) == [b"job.succeeded"]


async def test_a_cancel_before_any_worker_came_is_never_handed_out(
    store: JobStore, make_job: MakeJob, worker: LeaseClient
) -> None:
    record, _ = await store.submit(make_job())
    other, _ = await store.submit(make_job())
    await store.cancel(record.id)
    assert [job.id for job in worker.claim([MODEL], 2)] == [other.id]


async def test_an_unknown_job_cannot_be_cancelled(store: JobStore) -> None:
    with pytest.raises(JobNotFound):
        await store.cancel("job_unknown")


async def test_a_job_that_finishes_as_it_is_cancelled_ends_once(
    store: JobStore, redis_client: Redis, make_job: MakeJob, worker: LeaseClient
) -> None:
    """Whoever comes first wins; the record, the events and RQ's registries agree."""
    for round_ in range(40):
        record, _ = await store.submit(make_job())
        claiming = asyncio.to_thread(worker.claim, [MODEL], 1)
        if round_ % 2:
            [job] = await claiming
        else:
            _, claimed = await asyncio.gather(store.cancel(record.id), claiming)
            job = claimed[0] if claimed else None
        if job is not None:
            finishing = asyncio.to_thread(worker.finish, job, Outcome(Status.SUCCEEDED))
            await asyncio.gather(finishing, store.cancel(record.id))
        ended = await store.get(record.id)
        assert ended.status in (Status.CANCELLED, Status.SUCCEEDED)
        assert endings(redis_client, record.id) == [f"job.{ended.status.value}".encode()]
        registries = [
            state
            for state in ("finished", "failed", "canceled")
            if redis_client.zscore(f"rq:{state}:{MODEL}:standard", record.id) is not None
        ]
        assert len(registries) == 1
    assert redis_client.zcard("denoised:wip") == 0


async def test_a_lost_worker_does_not_bring_a_cancelled_job_back(
    store: JobStore,
    redis_client: Redis,
    make_job: MakeJob,
    worker: LeaseClient,
    keeper: Keeper,
    lapse: Callable[[ClaimedJob], None],
) -> None:
    await store.submit(make_job())
    [job] = worker.claim([MODEL], 1)
    await store.cancel(job.id)
    lapse(job)
    assert keeper.run_once().cancelled == (job.id,)
    assert (await store.get(job.id)).status is Status.CANCELLED
    assert endings(redis_client, job.id) == [b"job.cancelled"]


async def test_a_drained_job_that_was_cancelled_is_not_queued_again(
    store: JobStore, make_job: MakeJob, worker: LeaseClient
) -> None:
    await store.submit(make_job())
    [job] = worker.claim([MODEL], 1)
    await store.cancel(job.id)
    assert worker.requeue(job, "drain", True, Usage())
    assert (await store.get(job.id)).status is Status.CANCELLED


async def test_rq_cancelling_a_running_job_is_honoured(
    store: JobStore, redis_client: Redis, make_job: MakeJob, worker: LeaseClient
) -> None:
    await store.submit(make_job())
    [job] = worker.claim([MODEL], 1)
    Job.fetch(job.id, connection=redis_client, serializer=JSONSerializer).cancel()
    assert worker.report([Progress(job, Stage.DENOISING, 1, 4)]) == [Verdict.CANCEL]
    assert worker.finish(job, Outcome(Status.SUCCEEDED))
    assert (await store.get(job.id)).status is Status.CANCELLED
    assert endings(redis_client, job.id) == [b"job.cancelled"]


async def test_only_an_ended_job_can_be_deleted(
    store: JobStore,
    redis_client: Redis,
    make_job: MakeJob,
    worker: LeaseClient,
    output_of: Callable[[ClaimedJob], Output],
) -> None:
    with pytest.raises(JobNotFound):
        await store.delete("job_unknown")
    record, _ = await store.submit(make_job())
    with pytest.raises(JobActive, match="queued"):
        await store.delete(record.id)
    [job] = worker.claim([MODEL], 1)
    with pytest.raises(JobActive, match="running"):
        await store.delete(record.id)
    output = output_of(job)
    worker.finish(job, Outcome(Status.SUCCEEDED, outputs=(output,)))
    assert await store.delete(record.id) == [output.key]
    assert redis_client.keys(f"*{record.id}*") == []
    with pytest.raises(JobNotFound):
        await store.get(record.id)
    assert await store.list() == ([], None)
