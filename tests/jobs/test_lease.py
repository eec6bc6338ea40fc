"""Holding a lease: reports, heartbeats, the end, handing back; and being fenced off."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.exceptions import ConnectionError

from config.settings import Settings
from jobs import connections, scripts
from jobs.connections import connect
from jobs.embedded_redis import EmbeddedRedis
from jobs.errors import StoreUnavailable
from jobs.keeper import Keeper
from jobs.lease import LeaseClient
from jobs.store import JobStore
from jobs.types import (
    ClaimedJob,
    ErrorCode,
    JobFailure,
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
FAILED = Outcome(Status.FAILED, failure=JobFailure(code=ErrorCode.INTERNAL, message="broken"))
DONE = Outcome(Status.SUCCEEDED)


@pytest.fixture
async def job(store: JobStore, make_job: MakeJob, worker: LeaseClient) -> ClaimedJob:
    await store.submit(make_job())
    [claimed] = worker.claim([MODEL], 1)
    return claimed


def kinds(client: Redis, job: ClaimedJob) -> list[str]:
    return [entry[b"type"].decode() for _, entry in client.xrange(f"denoised:ev:{job.id}")]


def snapshot(client: Redis, job: ClaimedJob) -> dict[str, Any]:
    """Everything Redis holds about a job, to see that a call changed nothing."""
    return {
        "hash": client.hgetall(f"rq:job:{job.id}"),
        "events": client.xrange(f"denoised:ev:{job.id}"),
        "results": client.xrange(f"rq:results:{job.id}"),
        "leases": client.zrange("denoised:wip", 0, -1),
        "queue": client.lrange(f"rq:queue:{job.queue}", 0, -1),
    }


def lease_end(client: Redis, job: ClaimedJob) -> float:
    end = client.zscore("denoised:wip", f"{job.id}:{job.execution_id}")
    assert end is not None
    return end


async def test_a_report_shows_in_the_record_and_the_log(
    store: JobStore, redis_client: Redis, worker: LeaseClient, job: ClaimedJob
) -> None:
    update = Progress(job, Stage.DENOISING, 1, 4, eta_seconds=2.5, preview=b"\xff\xd8jpeg")
    assert worker.report([update]) == [Verdict.CONTINUE]
    record = await store.get(job.id)
    assert (record.stage, record.step, record.total_steps) == (Stage.DENOISING, 1, 4)
    assert record.eta_seconds == 2.5
    assert kinds(redis_client, job) == [
        "job.queued",
        "job.started",
        "job.progress",
        "job.preview",
    ]
    data = redis_client.xrange(f"denoised:ev:{job.id}")[-1][1][b"data"]
    assert base64.b64encode(b"\xff\xd8jpeg") in data


async def test_a_report_without_an_event_still_extends_the_lease(
    store: JobStore, redis_client: Redis, worker: LeaseClient, job: ClaimedJob
) -> None:
    before = lease_end(redis_client, job)
    verdicts = worker.report([Progress(job, Stage.DENOISING, 2, 4, event=False)])
    assert verdicts == [Verdict.CONTINUE]
    assert lease_end(redis_client, job) > before
    assert (await store.get(job.id)).step == 2
    assert kinds(redis_client, job) == ["job.queued", "job.started"]


async def test_a_heartbeat_extends_the_lease_and_says_nothing_else(
    store: JobStore, redis_client: Redis, worker: LeaseClient, job: ClaimedJob
) -> None:
    worker.report([Progress(job, Stage.DENOISING, 2, 4)])
    before = lease_end(redis_client, job)
    earlier = snapshot(redis_client, job)
    assert worker.beat([job]) == [Verdict.CONTINUE]
    assert lease_end(redis_client, job) > before
    assert snapshot(redis_client, job) == earlier
    assert worker.beat([]) == worker.report([]) == []


async def test_reports_of_a_batch_are_one_round_trip_and_answered_in_order(
    store: JobStore, redis_client: Redis, make_job: MakeJob, worker: LeaseClient
) -> None:
    for _ in range(3):
        await store.submit(make_job())
    first, second, third = worker.claim([MODEL], 3)
    await store.cancel(second.id)
    worker.finish(third, DONE)
    updates = [Progress(job, Stage.DENOISING, 1, 4) for job in (first, second, third)]
    assert worker.report(updates) == [Verdict.CONTINUE, Verdict.CANCEL, Verdict.LEASE_LOST]


async def test_a_success_is_written_with_its_outputs_and_cost(
    store: JobStore,
    redis_client: Redis,
    worker: LeaseClient,
    job: ClaimedJob,
    output_of: Callable[[ClaimedJob], Output],
) -> None:
    usage = Usage(gpu_seconds=1.25, steps=4, resumed_steps=1)
    outcome = Outcome(Status.SUCCEEDED, outputs=(output_of(job),), usage=usage)
    assert worker.finish(job, outcome)
    record = await store.get(job.id)
    assert (record.status, record.outputs, record.usage) == (
        Status.SUCCEEDED,
        (output_of(job),),
        usage,
    )
    assert record.finished_at is not None
    assert (record.stage, record.eta_seconds, record.error) == (None, None, None)
    last = redis_client.xrange(f"denoised:ev:{job.id}")[-1][1]
    assert last[b"type"] == b"job.succeeded"
    assert b'"key"' not in last[b"data"]
    assert redis_client.zcard("denoised:wip") == 0


async def test_a_success_has_taken_every_step_whatever_reports_were_lost(
    store: JobStore, worker: LeaseClient, job: ClaimedJob
) -> None:
    worker.report([Progress(job, Stage.DENOISING, 1, 4)])
    assert worker.finish(job, DONE)
    record = await store.get(job.id)
    assert (record.step, record.total_steps) == (4, 4)


async def test_a_failure_keeps_the_steps_it_got_to(
    store: JobStore, worker: LeaseClient, job: ClaimedJob
) -> None:
    worker.report([Progress(job, Stage.DENOISING, 1, 4)])
    assert worker.finish(job, FAILED)
    assert (await store.get(job.id)).step == 1


async def test_usage_adds_up_over_attempts(
    store: JobStore, worker: LeaseClient, job: ClaimedJob
) -> None:
    assert worker.requeue(job, "drain", True, Usage(gpu_seconds=0.5, steps=2))
    [again] = worker.claim([MODEL], 1)
    assert worker.finish(again, Outcome(Status.SUCCEEDED, usage=Usage(gpu_seconds=1.0, steps=4)))
    assert (await store.get(job.id)).usage == Usage(gpu_seconds=1.5, steps=6)


@pytest.mark.parametrize("outcome", [DONE, FAILED, Outcome(Status.CANCELLED)])
async def test_a_finish_sent_twice_is_done_once(
    redis_client: Redis, worker: LeaseClient, job: ClaimedJob, outcome: Outcome
) -> None:
    assert worker.finish(job, outcome)
    once = snapshot(redis_client, job)
    assert worker.finish(job, outcome)
    assert worker.finish(job, FAILED)
    assert snapshot(redis_client, job) == once


async def test_a_zombie_changes_nothing(
    redis_client: Redis,
    keeper: Keeper,
    worker: LeaseClient,
    make_worker: Callable[..., LeaseClient],
    job: ClaimedJob,
    lapse: Callable[[ClaimedJob], None],
) -> None:
    lapse(job)
    assert keeper.run_once().requeued == (job.id,)

    def try_everything() -> None:
        assert worker.report([Progress(job, Stage.DENOISING, 3, 4)]) == [Verdict.LEASE_LOST]
        assert worker.beat([job]) == [Verdict.LEASE_LOST]
        assert worker.finish(job, DONE) is False
        assert worker.requeue(job, "drain", True, Usage()) is False

    for now_queued in (True, False):
        before = snapshot(redis_client, job)
        try_everything()
        assert snapshot(redis_client, job) == before
        if now_queued:
            [second] = make_worker("worker-b").claim([MODEL], 1)
            assert second.attempt == 2
    assert make_worker("worker-b").finish(second, DONE)
    before = snapshot(redis_client, job)
    try_everything()
    assert snapshot(redis_client, job) == before


async def test_a_late_heartbeat_saves_a_job_that_was_not_reaped_yet(
    keeper: Keeper,
    worker: LeaseClient,
    job: ClaimedJob,
    lapse: Callable[[ClaimedJob], None],
) -> None:
    lapse(job)
    assert worker.beat([job]) == [Verdict.CONTINUE]
    assert keeper.run_once().requeued == ()
    assert worker.finish(job, DONE)


async def test_a_drained_job_goes_to_the_front_with_its_attempt_back(
    store: JobStore, redis_client: Redis, make_job: MakeJob, worker: LeaseClient, job: ClaimedJob
) -> None:
    await store.submit(make_job())
    assert worker.requeue(job, "drain", True, Usage())
    once = snapshot(redis_client, job)
    assert worker.requeue(job, "drain", True, Usage()), "sent twice, done once"
    assert snapshot(redis_client, job) == once
    record = await store.get(job.id)
    assert (record.status, record.attempt, record.queue_position) == (Status.QUEUED, 0, 0)
    assert (record.step, record.worker, record.started_at) == (0, None, None)
    data = redis_client.xrange(f"denoised:ev:{job.id}")[-1][1][b"data"]
    assert b'"cause":"drain","step":0' in data
    [again, _] = worker.claim([MODEL], 2)
    assert (again.id, again.attempt) == (job.id, 1)


async def test_handing_back_without_refund_is_bounded(
    store: JobStore, worker: LeaseClient, job: ClaimedJob
) -> None:
    for attempt in (1, 2, 3):
        assert job.attempt == attempt
        assert worker.requeue(job, "hung", False, Usage())
        claimed = worker.claim([MODEL], 1)
        job = claimed[0] if claimed else job
    record = await store.get(job.id)
    assert record.status is Status.FAILED
    assert record.error is not None
    assert record.error.code is ErrorCode.WORKER_LOST


async def test_an_outcome_that_is_no_end_is_refused(worker: LeaseClient, job: ClaimedJob) -> None:
    with pytest.raises(ValueError, match="cannot finish as running"):
        worker.finish(job, Outcome(Status.RUNNING))
    with pytest.raises(ValueError, match="needs a failure"):
        worker.finish(job, Outcome(Status.FAILED))


async def test_without_redis_a_call_gives_up_in_the_end(settings: Settings) -> None:
    client = LeaseClient("unix:///nowhere/redis.sock", settings, "lost")
    with pytest.raises(StoreUnavailable, match="cannot be reached"):
        client.claim([MODEL], 1, retry_seconds=0.2)
    client.close()


async def test_a_client_that_gives_up_does_not_try_again(settings: Settings) -> None:
    asked: list[None] = []
    client = LeaseClient(
        "unix:///nowhere/redis.sock",
        settings,
        "leaving",
        gives_up=lambda: asked.append(None) is None,
    )
    with pytest.raises(StoreUnavailable, match="cannot be reached"):
        client.retire()
    assert len(asked) == 1
    client.close()


@contextmanager
def frozen(server: EmbeddedRedis) -> Iterator[None]:
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


@pytest.mark.parametrize("is_leaving", [True, False])
async def test_a_worker_that_leaves_asks_a_frozen_redis_once(
    settings: Settings,
    redis_server: EmbeddedRedis,
    redis_client: Redis,
    monkeypatch: pytest.MonkeyPatch,
    is_leaving: bool,
) -> None:
    """And asks again once it has answered anybody of the worker."""
    monkeypatch.setattr(connections, "SOCKET_TIMEOUT", 0.1)
    gives_up = is_leaving
    client = LeaseClient(redis_server.url, settings, "leaving", gives_up=lambda: gives_up)
    with frozen(redis_server):
        with pytest.raises(StoreUnavailable, match="cannot be reached"):
            client.claim([MODEL], 1, retry_seconds=0)
        later = "did not answer a moment ago" if is_leaving else "cannot be reached"
        with pytest.raises(StoreUnavailable, match=later):
            client.claim([MODEL], 1, retry_seconds=0)
    gives_up = False
    client.retire()
    gives_up = is_leaving
    with frozen(redis_server), pytest.raises(StoreUnavailable, match="cannot be reached"):
        client.claim([MODEL], 1, retry_seconds=0)
    client.close()


async def test_a_claim_given_up_on_is_granted_to_the_next(
    store: JobStore,
    make_job: MakeJob,
    worker: LeaseClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    record, _ = await store.submit(make_job())
    run = scripts.run

    def lose_the_answer(*args: Any) -> None:
        run(*args)
        raise ConnectionError("the line is dead")

    monkeypatch.setattr(scripts, "run", lose_the_answer)
    with pytest.raises(StoreUnavailable):
        worker.claim([MODEL], 1, retry_seconds=0)
    monkeypatch.undo()
    [job] = worker.claim([MODEL], 1)
    assert (job.id, job.attempt) == (record.id, 1)
    assert worker.claim([MODEL], 1) == []


async def test_a_lost_answer_is_made_up_by_sending_again(
    redis: AsyncRedis,
    redis_client: Redis,
    store: JobStore,
    worker: LeaseClient,
    job: ClaimedJob,
) -> None:
    """The server drops every client while a worker is reporting as fast as it can."""
    rounds = 200

    def work() -> list[Verdict]:
        verdicts: list[Verdict] = []
        for step in range(rounds):
            verdicts += worker.report([Progress(job, Stage.DENOISING, step, rounds)])
        return verdicts

    working = asyncio.create_task(asyncio.to_thread(work))
    with connect(str(worker._settings.redis_url)) as killer:
        while not working.done():
            killer.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await asyncio.sleep(0.005)
    assert await working == [Verdict.CONTINUE] * rounds
    assert worker.finish(job, DONE)
    assert kinds(redis_client, job).count("job.succeeded") == 1
