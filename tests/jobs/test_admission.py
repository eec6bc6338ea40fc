"""What is let in: quotas of a key, the queue's limit, and deadlines from submission to end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from config.settings import Settings
from jobs import costs
from jobs.api_keys import KeyStore, Quotas
from jobs.checkpoints import checkpoint_key
from jobs.dead_worker import take_back
from jobs.errors import DeadlineTooSoon, QueueFull, QuotaExceeded
from jobs.keeper import Keeper
from jobs.lease import LeaseClient
from jobs.store import MAX_RETRY_AFTER, JobStore
from jobs.types import (
    Checkpoint,
    ClaimedJob,
    ErrorCode,
    NewJob,
    Outcome,
    Progress,
    Stage,
    StageCosts,
    Status,
    Usage,
    Verdict,
)
from jobs.worker_registry import WorkerInfo, announce

MODEL = "test-model"
DAY = 86_400
MakeJob = Callable[..., NewJob]


@pytest.fixture
def key_of(redis_client: Redis) -> Callable[..., str]:
    """Keys with these quotas."""
    return lambda **quotas: KeyStore(redis_client).create("key", Quotas(**quotas))[0].id


async def test_a_key_has_no_more_waiting_than_its_quota(
    store: JobStore, make_job: MakeJob, worker: LeaseClient, key_of: Callable[..., str]
) -> None:
    key = key_of(max_queued=2)
    repeated = {"owner": key, "idempotency_key": "k", "fingerprint": "f"}
    first, _ = await store.submit(make_job(**repeated))
    await store.submit(make_job(owner=key, model="other-model"))
    with pytest.raises(QuotaExceeded) as refused:
        await store.submit(make_job(owner=key))
    assert (refused.value.quota, refused.value.limit) == ("max_queued", 2)
    assert refused.value.retry_after >= 1
    again, created = await store.submit(make_job(**repeated))
    assert (again.id, created) == (first.id, False), "a repetition takes no place"
    for other in ("", key_of(max_queued=2)):
        await store.submit(make_job(owner=other))
    while worker.claim([MODEL], 8):
        pass
    await store.submit(make_job(owner=key))


async def test_a_refusal_says_when_there_may_be_room(
    store: JobStore,
    redis_client: Redis,
    make_job: MakeJob,
    worker: LeaseClient,
    key_of: Callable[..., str],
) -> None:
    """One job every 2 s lately, and two keys to share that."""
    seconds, micros = redis_client.time()
    times = [seconds + micros / 1e6 - 20.0 + 2 * n for n in range(10)]
    redis_client.lpush("denoised:finishes", *(f"{t:.6f}" for t in times))
    key = key_of(max_queued=1)
    await store.submit(make_job(owner=key))
    await store.submit(make_job(owner="other"))
    with pytest.raises(QuotaExceeded) as refused:
        await store.submit(make_job(owner=key))
    assert 4 <= refused.value.retry_after <= 5


async def test_a_key_is_told_to_look_again_within_ten_minutes_for_a_place(
    store: JobStore, redis_client: Redis, make_job: MakeJob, key_of: Callable[..., str]
) -> None:
    redis_client.rpush("denoised:finishes", 1e6, 1000)
    key = key_of(max_queued=1)
    await store.submit(make_job(owner=key))
    with pytest.raises(QuotaExceeded) as refused:
        await store.submit(make_job(owner=key))
    assert refused.value.retry_after == MAX_RETRY_AFTER


async def test_a_day_has_its_jobs_and_its_gpu_seconds(
    store: JobStore,
    redis_client: Redis,
    make_job: MakeJob,
    worker: LeaseClient,
    key_of: Callable[..., str],
) -> None:
    by_jobs, by_seconds = key_of(jobs_per_day=2), key_of(gpu_seconds_per_day=5)
    for key in (by_jobs, by_seconds):
        for _ in range(2):
            await store.submit(make_job(owner=key))
            [job] = worker.claim([MODEL], 1)
            assert worker.finish(job, Outcome(Status.SUCCEEDED, usage=Usage(gpu_seconds=3.0)))
        with pytest.raises(QuotaExceeded) as refused:
            await store.submit(make_job(owner=key))
        now = int(redis_client.time()[0])
        assert abs(refused.value.retry_after - (DAY - now % DAY)) <= 5
    today = int(redis_client.time()[0]) // DAY
    usage = f"denoised:usage:{by_jobs}:{today}"
    assert 0 < redis_client.ttl(usage) <= 2 * DAY
    redis_client.rename(usage, f"denoised:usage:{by_jobs}:{today - 1}")
    await store.submit(make_job(owner=by_jobs))


@pytest.mark.parametrize("end", ["lapsed", "died", "hung"])
async def test_an_attempt_that_cannot_tell_what_it_cost_is_charged_all_the_same(
    store: JobStore,
    redis_client: Redis,
    settings: Settings,
    make_job: MakeJob,
    worker: LeaseClient,
    keeper: Keeper,
    lapse: Callable[[ClaimedJob], None],
    key_of: Callable[..., str],
    end: str,
) -> None:
    """What its checkpoints booked, and no less than the second that is charged unmeasured."""
    key = key_of(gpu_seconds_per_day=5)
    await store.submit(make_job(owner=key))

    def lose(job: ClaimedJob) -> None:
        if end == "lapsed":
            lapse(job)
            keeper.run_once()
        elif end == "died":
            take_back(redis_client, settings, "worker-a")
        else:
            worker.requeue(job, "worker_hung", False, None)

    def charged() -> tuple[float, float]:
        days = [redis_client.hget(day, "gpu_seconds") for day in redis_client.keys("*:usage:*")]
        share = redis_client.hget("denoised:fair", key)
        return sum(float(seconds or 0) for seconds in days), float(share or 0)

    [job] = worker.claim([MODEL], 1)
    lose(job)
    assert charged() == (1, 1)
    [job] = worker.claim([MODEL], 1)
    checkpoint = Checkpoint(checkpoint_key(job.id, job.execution_id, 2), 2, "0")
    assert worker.record_checkpoint(job, checkpoint, Usage(gpu_seconds=1000.0, steps=2))
    lose(job)
    assert charged() == (1001, 1001)
    with pytest.raises(QuotaExceeded):
        await store.submit(make_job(owner=key))
    [job] = worker.claim([MODEL], 1)
    usage = Usage(gpu_seconds=2.0, steps=2, resumed_steps=2)
    assert worker.finish(job, Outcome(Status.SUCCEEDED, usage=usage))
    assert charged() == (1003, 1003)


async def test_the_queue_limit_counts_the_lanes_of_all_keys(
    redis: AsyncRedis, make_settings: Callable[..., Settings], make_job: MakeJob
) -> None:
    store = JobStore(redis, make_settings(max_queued_jobs=3))
    for owner in ("", "a", "b"):
        await store.submit(make_job(owner=owner))
    with pytest.raises(QueueFull):
        await store.submit(make_job(owner="c"))


@pytest.fixture
async def measured(
    store: JobStore,
    redis_client: Redis,
    make_job: MakeJob,
    worker: LeaseClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A model whose jobs take 5.5 s, of which 4 on the device, and one worker for it."""
    monkeypatch.setattr(costs, "FRESH_SECONDS", -1.0)
    info = WorkerInfo(name="w", pid=1, host="h", device="cpu", dtype="float32", models=(MODEL,))
    announce(redis_client, info)
    await store.submit(make_job())
    [job] = worker.claim([MODEL], 1)
    sample = StageCosts(encoding=1.0, step=0.5, device_step=0.25, decoding=2.0, storing=0.5)
    usage = Usage(gpu_seconds=4.0, steps=4)
    assert worker.finish(job, Outcome(Status.SUCCEEDED, usage=usage, costs=sample))


@pytest.mark.usefixtures("measured")
async def test_a_deadline_that_cannot_be_met_is_refused(
    store: JobStore, redis_client: Redis, make_job: MakeJob
) -> None:
    with pytest.raises(DeadlineTooSoon) as refused:
        await store.submit(make_job(deadline_seconds=5.0))
    assert (refused.value.needed, refused.value.run) == (5.5, 5.5)
    record, _ = await store.submit(make_job(deadline_seconds=6.0))
    assert record.deadline_at is not None
    assert (record.deadline_at - record.created_at).total_seconds() == 6.0
    assert (await store.get(record.id)).deadline_at == record.deadline_at
    with pytest.raises(DeadlineTooSoon) as refused:
        await store.submit(make_job(deadline_seconds=6.0))
    assert refused.value.needed == pytest.approx(4.0 + 5.5)
    await store.submit(make_job(deadline_seconds=10.0))
    assert (await store.stats()).queued == 2
    assert redis_client.zcard("denoised:deadlines") == 2


@pytest.mark.usefixtures("measured")
async def test_the_wait_for_a_place_is_what_jobs_take_however_long_nothing_has_finished(
    store: JobStore,
    redis_client: Redis,
    make_job: MakeJob,
    key_of: Callable[..., str],
) -> None:
    """5.5 s a job, and two keys to share that; a second worker halves it."""
    redis_client.delete("denoised:finishes")
    redis_client.rpush("denoised:finishes", 1001, 1000)
    key = key_of(max_queued=1)
    await store.submit(make_job(owner=key))
    await store.submit(make_job(owner="other"))

    async def wait_told() -> int:
        with pytest.raises(QuotaExceeded) as refused:
            await store.submit(make_job(owner=key))
        return refused.value.retry_after

    assert await wait_told() == 11
    info = WorkerInfo(name="v", pid=1, host="h", device="cpu", dtype="float32", models=(MODEL,))
    announce(redis_client, info)
    assert await wait_told() == 6


@pytest.mark.usefixtures("measured")
async def test_a_dead_worker_makes_no_deadline_look_possible(
    store: JobStore, redis_client: Redis, make_job: MakeJob
) -> None:
    info = WorkerInfo(name="dead", pid=1, host="h", device="cpu", dtype="float32", models=(MODEL,))
    announce(redis_client, info)
    redis_client.delete("rq:worker:dead")
    await store.submit(make_job())
    with pytest.raises(DeadlineTooSoon) as refused:
        await store.submit(make_job(deadline_seconds=9.0))
    assert refused.value.needed == pytest.approx(4.0 + 5.5)


async def test_without_a_measurement_no_deadline_is_refused(
    store: JobStore, make_job: MakeJob
) -> None:
    await store.submit(make_job(deadline_seconds=0.001))


def pass_deadline(redis_client: Redis, job_id: str) -> None:
    redis_client.hset(f"rq:job:{job_id}", "deadline_us", 1)
    redis_client.zadd("denoised:deadlines", {job_id: 1}, xx=True)


async def assert_late(store: JobStore, redis_client: Redis, job_id: str, owner: str = "") -> None:
    record = await store.get(job_id, owner)
    assert record.status is Status.FAILED
    assert record.error is not None
    assert record.error.code is ErrorCode.DEADLINE_EXCEEDED
    kinds = [entry[b"type"] for _, entry in redis_client.xrange(f"denoised:ev:{job_id}")]
    assert kinds.count(b"job.failed") == 1
    assert redis_client.zscore("denoised:deadlines", job_id) is None
    assert redis_client.zcard("rq:failed:test-model:standard") == 1
    assert (await store.stats()).queued + (await store.stats()).running == 0


@pytest.mark.parametrize("owner", ["", "a"])
@pytest.mark.parametrize("by", ["claim", "keeper"])
async def test_a_job_that_waited_past_its_deadline_is_dropped(
    store: JobStore,
    redis_client: Redis,
    make_job: MakeJob,
    worker: LeaseClient,
    keeper: Keeper,
    by: str,
    owner: str,
) -> None:
    record, _ = await store.submit(make_job(deadline_seconds=60.0, owner=owner))
    assert keeper.run_once().failed == ()
    pass_deadline(redis_client, record.id)
    if by == "keeper":
        assert keeper.run_once().failed == (record.id,)
    assert worker.claim([MODEL], 1) == []
    await assert_late(store, redis_client, record.id, owner)


async def test_a_job_that_runs_past_its_deadline_is_stopped_at_its_next_step(
    store: JobStore, redis_client: Redis, make_job: MakeJob, worker: LeaseClient, keeper: Keeper
) -> None:
    record, _ = await store.submit(make_job(deadline_seconds=60.0))
    [job] = worker.claim([MODEL], 1)
    step = Progress(job, Stage.DENOISING, 1, 4)
    assert worker.report([step]) == [Verdict.CONTINUE]
    pass_deadline(redis_client, record.id)
    assert keeper.run_once().failed == (), "its worker ends it"
    assert worker.report([step]) == [Verdict.CANCEL]
    assert worker.beat([job]) == [Verdict.CANCEL]
    assert worker.finish(job, Outcome(Status.CANCELLED, usage=Usage(gpu_seconds=1.0, steps=1)))
    await assert_late(store, redis_client, record.id)
    assert (await store.get(record.id)).usage.steps == 1


@pytest.mark.parametrize("outcome", [Status.SUCCEEDED, Status.CANCELLED])
async def test_what_is_done_or_was_cancelled_stays_so_past_the_deadline(
    store: JobStore,
    redis_client: Redis,
    make_job: MakeJob,
    worker: LeaseClient,
    outcome: Status,
) -> None:
    record, _ = await store.submit(make_job(deadline_seconds=60.0))
    [job] = worker.claim([MODEL], 1)
    if outcome is Status.CANCELLED:
        await store.cancel(record.id)
    pass_deadline(redis_client, record.id)
    assert worker.finish(job, Outcome(outcome))
    assert (await store.get(record.id)).status is outcome


async def test_rqs_tools_read_the_failure_of_a_late_job(
    store: JobStore, redis_client: Redis, make_job: MakeJob, worker: LeaseClient
) -> None:
    from rq.job import Job
    from rq.serializers import JSONSerializer

    record, _ = await store.submit(make_job(deadline_seconds=60.0))
    pass_deadline(redis_client, record.id)
    worker.claim([MODEL], 1)
    job: Any = Job.fetch(record.id, connection=redis_client, serializer=JSONSerializer)
    assert "deadline_exceeded" in job.latest_result().exc_string
