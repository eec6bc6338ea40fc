"""Housekeeping: lapsed leases, poison jobs, expiry without leftovers, stray blobs."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from config.settings import Settings
from jobs.api_keys import KeyStore
from jobs.blobs import FileBlobStore
from jobs.connections import connect
from jobs.keeper import Keeper, KeeperReport
from jobs.lease import LeaseClient
from jobs.store import JobStore
from jobs.types import ClaimedJob, ErrorCode, JobFailure, Outcome, Output, Status
from jobs.worker_registry import WorkerInfo, announce
from tests.jobs.conftest import MODEL, ClaimOne, Lapse, MakeJob


async def test_a_lapsed_job_goes_to_the_front_and_says_why(
    store: JobStore,
    redis_client: Redis,
    make_job: MakeJob,
    worker: LeaseClient,
    keeper: Keeper,
    lapse: Lapse,
) -> None:
    await store.submit(make_job())
    await store.submit(make_job())
    [job] = worker.claim([MODEL], 1)
    assert keeper.run_once() == KeeperReport()
    lapse(job)
    assert keeper.run_once().requeued == (job.id,)
    record = await store.get(job.id)
    assert (record.status, record.queue_position, record.attempt) == (Status.QUEUED, 0, 1)
    entry = redis_client.xrange(f"denoised:ev:{job.id}")[-1][1]
    assert entry[b"type"] == b"job.requeued"
    assert b'"cause":"lease_lapsed"' in entry[b"data"]
    [again] = worker.claim([MODEL], 1)
    assert (again.id, again.attempt) == (job.id, 2)
    assert again.execution_id != job.execution_id


async def test_a_poison_job_fails_after_its_attempts(
    store: JobStore,
    redis_client: Redis,
    make_job: MakeJob,
    worker: LeaseClient,
    keeper: Keeper,
    lapse: Lapse,
) -> None:
    record, _ = await store.submit(make_job())
    for attempt in (1, 2, 3):
        [job] = worker.claim([MODEL], 1)
        assert job.attempt == attempt
        lapse(job)
        report = keeper.run_once()
    assert (report.requeued, report.failed) == ((), (record.id,))
    assert worker.claim([MODEL], 1) == []
    ended = await store.get(record.id)
    assert (ended.status, ended.attempt) == (Status.FAILED, 3)
    assert ended.error is not None
    assert (ended.error.code, ended.error.retryable) == (ErrorCode.WORKER_LOST, True)
    assert redis_client.zscore(f"rq:failed:{MODEL}:standard", record.id) is not None
    assert redis_client.xrange(f"denoised:ev:{record.id}")[-1][1][b"type"] == b"job.failed"


async def test_a_stray_lease_is_dropped_and_its_job_left_alone(
    claim_one: ClaimOne, redis_client: Redis, worker: LeaseClient, keeper: Keeper
) -> None:
    """A lease of an earlier execution, as an older snapshot of the database may bring back."""
    job = await claim_one()
    redis_client.zadd("denoised:wip", {f"{job.id}:earlier": 1, "job_gone:e": 1})
    assert keeper.run_once() == KeeperReport()
    assert redis_client.zcard("denoised:wip") == 1
    assert worker.finish(job, Outcome(Status.SUCCEEDED))


async def test_a_running_job_that_was_deleted_from_outside_leaves_nothing_running(
    store: JobStore,
    redis_client: Redis,
    make_job: MakeJob,
    worker: LeaseClient,
    keeper: Keeper,
    lapse: Lapse,
) -> None:
    key, _ = KeyStore(redis_client).create("studio")
    for _ in range(2):
        await store.submit(make_job(owner=key.id))
    deleted, kept = worker.claim([MODEL], 2)
    redis_client.delete(f"rq:job:{deleted.id}")
    lapse(deleted)
    assert keeper.run_once() == KeeperReport()
    assert (await store.stats()).running == 1
    assert redis_client.smembers(f"denoised:held:{key.id}") == {kept.id.encode()}


def test_workers_that_died_are_taken_off_rqs_sets(redis_client: Redis, keeper: Keeper) -> None:
    dead, living = (
        WorkerInfo(name=name, pid=1, host="h", device="cpu", dtype="float32", models=(MODEL,))
        for name in ("dead", "living")
    )
    announce(redis_client, dead)
    announce(redis_client, living)
    redis_client.delete("rq:worker:dead")
    keeper.run_once()
    for key in ("rq:workers", f"rq:workers:{MODEL}:standard"):
        assert redis_client.smembers(key) == {b"rq:worker:living"}


def test_a_strangers_odd_id_is_forgotten_and_stops_nothing(
    redis_client: Redis, worker: LeaseClient, keeper: Keeper, settings: Settings
) -> None:
    settings.data_dir.joinpath("outside").touch()
    redis_client.hset("rq:job:../../outside", mapping={"status": "queued", "priority": "urgent"})
    redis_client.rpush(f"rq:queue:{MODEL}:standard", "../../outside")
    assert worker.claim([MODEL], 1) == []
    assert redis_client.hget("rq:job:../../outside", "status") == b"failed"
    redis_client.zadd("denoised:expiry", {"../../outside": 1})
    assert keeper.run_once().expired == 1
    assert redis_client.zcard("denoised:expiry") == 0
    assert settings.data_dir.joinpath("outside").exists()


async def test_two_keepers_reap_a_job_once(
    store: JobStore,
    redis_client: Redis,
    settings: Settings,
    blobs: FileBlobStore,
    make_job: MakeJob,
    worker: LeaseClient,
    keeper: Keeper,
    lapse: Lapse,
) -> None:
    for _ in range(20):
        await store.submit(make_job())
    jobs = worker.claim([MODEL], 20)
    for job in jobs:
        lapse(job)
    assert settings.redis_url is not None
    reports: list[KeeperReport] = []
    with connect(settings.redis_url) as other_client:
        other = Keeper(other_client, settings, blobs)
        threads = [
            threading.Thread(target=lambda k=k: reports.append(k.run_once()))  # type: ignore[misc]
            for k in (keeper, other)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(id_ for report in reports for id_ in report.requeued) == sorted(
        job.id for job in jobs
    )
    assert redis_client.llen(f"rq:queue:{MODEL}:standard") == 20


async def test_an_expired_job_leaves_no_key_and_no_blob(
    redis: AsyncRedis,
    redis_client: Redis,
    make_settings: Callable[..., Settings],
    make_worker: Callable[..., LeaseClient],
    make_job: MakeJob,
    keeper: Keeper,
    blobs: FileBlobStore,
    output_of: Callable[[ClaimedJob], Output],
) -> None:
    settings = make_settings(result_ttl_seconds=1, event_ttl_seconds=1, idempotency_ttl_seconds=1)
    store = JobStore(redis, settings)
    worker = make_worker(settings=settings)
    for status in (Status.SUCCEEDED, Status.CANCELLED):
        record, _ = await store.submit(make_job(idempotency_key=status.value))
        [job] = worker.claim([MODEL], 1)
        blobs.put(output_of(job).key, b"png")
        worker.finish(job, Outcome(status, outputs=(output_of(job),)))
        assert redis_client.keys(f"*{record.id}*") != []
    expired = 0
    while expired < 2:
        expired += keeper.run_once().expired
        time.sleep(0.05)
    left = {key.decode() for key in redis_client.keys("*")}
    left -= {key for key in left if key.startswith(("denoised:claim:", "denoised:idem:"))}
    assert left <= {
        "denoised:queues",
        "denoised:finishes",
        "denoised:reap_from",
        "denoised:vtime",
        "denoised:fair",
        "denoised:served",
        f"denoised:wake:{MODEL}",
        "rq:queues",
    }
    assert not list(blobs.executions())
    # What remains of the two is short-lived by itself.
    for key in redis_client.scan_iter("denoised:[ci]*"):
        assert redis_client.ttl(key) > 0


async def test_what_ends_gets_a_time_to_live(
    store: JobStore, redis_client: Redis, make_job: MakeJob, worker: LeaseClient
) -> None:
    record, _ = await store.submit(make_job())
    [job] = worker.claim([MODEL], 1)
    names = [f"rq:job:{job.id}", f"denoised:ev:{job.id}"]
    assert [redis_client.ttl(name) for name in names] == [-1, -1]
    worker.finish(job, Outcome(Status.SUCCEEDED))
    ttls = [redis_client.ttl(name) for name in [*names, f"rq:results:{record.id}"]]
    assert all(0 < ttl <= 86_400 for ttl in ttls)
    assert ttls[1] <= 600


async def test_blobs_of_a_deleted_job_are_swept_even_if_the_caller_dies(
    claim_one: ClaimOne,
    store: JobStore,
    worker: LeaseClient,
    keeper: Keeper,
    blobs: FileBlobStore,
    output_of: Callable[[ClaimedJob], Output],
) -> None:
    job = await claim_one()
    blobs.put(output_of(job).key, b"png")
    worker.finish(job, Outcome(Status.SUCCEEDED, outputs=(output_of(job),)))
    await store.delete(job.id)
    keeper.run_once()
    assert not list(blobs.executions())


async def test_blobs_of_a_fenced_off_execution_go_those_of_the_winner_stay(
    claim_one: ClaimOne,
    worker: LeaseClient,
    keeper: Keeper,
    blobs: FileBlobStore,
    lapse: Lapse,
    output_of: Callable[[ClaimedJob], Output],
) -> None:
    first = await claim_one()
    blobs.put(output_of(first).key, b"zombie")
    assert keeper.run_once().orphans == 0, "it may still finish"
    lapse(first)
    keeper.run_once()
    [second] = worker.claim([MODEL], 1)
    blobs.put(output_of(second).key, b"winner")
    keeper.run_once()
    worker.finish(second, Outcome(Status.SUCCEEDED, outputs=(output_of(second),)))
    keeper.run_once()
    assert [found.execution_id for found in blobs.executions()] == [second.execution_id]
    assert blobs.read(output_of(second).key) == b"winner"


async def test_what_was_stored_for_a_job_that_did_not_succeed_goes_its_inputs_stay(
    claim_one: ClaimOne,
    worker: LeaseClient,
    keeper: Keeper,
    blobs: FileBlobStore,
    output_of: Callable[[ClaimedJob], Output],
) -> None:
    failure = JobFailure(code=ErrorCode.INTERNAL, message="m")
    for outcome in (Outcome(Status.CANCELLED), Outcome(Status.FAILED, failure=failure)):
        job = await claim_one()
        blobs.put(output_of(job).key, b"nobody sees it")
        blobs.put(f"jobs/{job.id}/inputs/mask", b"png")
        worker.finish(job, outcome)
        keeper.run_once()
        assert {found.execution_id for found in blobs.executions()} == {"inputs"}


async def test_stray_blobs_are_left_alone_for_the_grace_time(
    redis_client: Redis,
    settings: Settings,
    blobs: FileBlobStore,
    store: JobStore,
    make_job: MakeJob,
) -> None:
    record, _ = await store.submit(make_job())
    blobs.put(f"jobs/{record.id}/stray/0.png", b"png")
    keeper = Keeper(redis_client, settings, blobs, orphan_grace_seconds=100, sweep_seconds=0)
    assert keeper.run_once().orphans == 0
    long_ago = time.time() - 101
    os.utime(blobs.path(f"jobs/{record.id}/stray"), (long_ago, long_ago))
    assert keeper.run_once().orphans == 1


async def test_blobs_redis_knows_nothing_of_are_kept_as_long_as_a_result(
    keeper: Keeper, settings: Settings, blobs: FileBlobStore
) -> None:
    """A keeper pointed at an empty Redis must not wipe the store."""
    blobs.put("jobs/unknown/execution/0.png", b"png")
    past_grace = time.time() - 3600
    os.utime(blobs.path("jobs/unknown/execution"), (past_grace, past_grace))
    assert keeper.run_once().orphans == 0
    past_results = time.time() - settings.result_ttl_seconds - 1
    os.utime(blobs.path("jobs/unknown/execution"), (past_results, past_results))
    assert keeper.run_once().orphans == 1


async def test_a_job_put_back_by_rq_outlives_its_old_expiry(
    store: JobStore, redis_client: Redis, make_job: MakeJob, worker: LeaseClient, keeper: Keeper
) -> None:
    record, _ = await store.submit(make_job())
    [job] = worker.claim([MODEL], 1)
    worker.finish(job, Outcome(Status.SUCCEEDED))
    redis_client.hset(f"rq:job:{record.id}", "status", "queued")
    redis_client.zadd("denoised:expiry", {record.id: 1})
    assert keeper.run_once().expired == 0
    assert (await store.get(record.id)).status is Status.QUEUED


def test_the_loop_ends_when_told_and_rides_out_a_missing_redis(
    make_settings: Callable[..., Settings], blobs: FileBlobStore
) -> None:
    stop = threading.Event()
    with connect("unix:///nowhere/redis.sock") as client:
        keeper = Keeper(client, make_settings(reap_seconds=0.01), blobs)
        thread = threading.Thread(target=keeper.run, args=(stop,))
        thread.start()
        thread.join(0.1)
        assert thread.is_alive()
        stop.set()
        thread.join(10)
        assert not thread.is_alive()
