"""Claiming: order, leases, attempts, and the claim that is sent twice."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Callable

import pytest
from redis import Redis
from rq import Queue
from rq.registry import FailedJobRegistry
from rq.serializers import JSONSerializer

from jobs.api_keys import KeyStore, Quotas
from jobs.lease import ALLOWANCE_SECONDS, DOORBELL_SECONDS, LeaseClient
from jobs.store import JobStore
from jobs.types import ErrorCode, JobFailure, NewJob, Outcome, Priority, Status

MakeJob = Callable[..., NewJob]
MODEL, OTHER = "test-model", "other-model"


def age(client: Redis, job_id: str, seconds: float) -> None:
    """Makes a job look as if it had been submitted earlier."""
    submitted = int(client.hget(f"rq:job:{job_id}", "submitted_us") or 0)
    client.hset(f"rq:job:{job_id}", "submitted_us", submitted - int(seconds * 1e6))


async def submit_all(store: JobStore, *jobs: NewJob) -> list[str]:
    for job in jobs:
        await store.submit(job)
    return [job.id for job in jobs]


async def test_urgent_classes_come_first_then_the_oldest(
    store: JobStore, make_job: MakeJob, worker: LeaseClient
) -> None:
    batch, standard, urgent_a, urgent_b = await submit_all(
        store,
        make_job(priority=Priority.BATCH),
        make_job(priority=Priority.STANDARD),
        make_job(priority=Priority.INTERACTIVE),
        make_job(model=OTHER, priority=Priority.INTERACTIVE),
    )
    claimed = worker.claim([OTHER, MODEL], 8)
    assert [job.id for job in claimed] == [urgent_a, urgent_b, standard, batch]
    assert [job.queued_seconds >= 0 for job in claimed] == [True] * 4


@pytest.mark.parametrize("priority", [Priority.STANDARD, Priority.BATCH])
async def test_no_class_is_passed_by_jobs_submitted_past_its_allowance(
    store: JobStore,
    redis_client: Redis,
    make_job: MakeJob,
    worker: LeaseClient,
    priority: Priority,
) -> None:
    patient, urgent = await submit_all(
        store, make_job(priority=priority), make_job(priority=Priority.INTERACTIVE)
    )
    age(redis_client, patient, ALLOWANCE_SECONDS[priority] + 0.1)
    assert [job.id for job in worker.claim([MODEL], 2)] == [patient, urgent]


async def test_a_claim_takes_no_more_than_asked_and_only_its_models(
    store: JobStore, make_job: MakeJob, worker: LeaseClient
) -> None:
    first, second, _ = await submit_all(store, make_job(), make_job(), make_job())
    await submit_all(store, make_job(model=OTHER))
    assert [job.id for job in worker.claim([MODEL], 2)] == [first, second]
    assert len(worker.claim([MODEL], 8)) == 1
    assert worker.claim([MODEL], 8) == []
    assert worker.claim([], 8) == []


async def test_a_claim_may_leave_classes_out(
    store: JobStore, make_job: MakeJob, worker: LeaseClient
) -> None:
    await submit_all(store, make_job(priority=Priority.BATCH))
    assert worker.claim([MODEL], 8, (Priority.INTERACTIVE, Priority.STANDARD)) == []
    assert len(worker.claim([MODEL], 8)) == 1


async def test_a_claimed_job_is_running_under_a_lease(
    store: JobStore, redis_client: Redis, make_job: MakeJob, worker: LeaseClient
) -> None:
    [job_id] = await submit_all(store, make_job(deterministic=True))
    [job] = worker.claim([MODEL], 1)
    assert (job.attempt, job.deterministic, job.input) == (1, True, make_job().input)
    record = await store.get(job_id)
    assert (record.status, record.worker, record.attempt) == (Status.RUNNING, "worker-a", 1)
    assert record.started_at is not None
    assert record.queue_position is None
    lease_end = redis_client.zscore("denoised:wip", f"{job_id}:{job.execution_id}")
    seconds, micros = redis_client.time()
    assert lease_end is not None
    assert 0 < lease_end - (seconds + micros / 1e6) <= 2.0


async def test_leftovers_on_the_list_are_dropped(
    store: JobStore, redis_client: Redis, make_job: MakeJob, worker: LeaseClient
) -> None:
    """A list may name jobs that were cancelled, have expired or are running."""
    cancelled, kept = await submit_all(store, make_job(), make_job())
    await store.cancel(cancelled)
    redis_client.lpush(f"rq:queue:{MODEL}:standard", "gone", cancelled)
    [job] = worker.claim([MODEL], 8)
    assert job.id == kept
    redis_client.lpush(f"rq:queue:{MODEL}:standard", kept)
    assert worker.claim([MODEL], 8) == []
    assert redis_client.llen(f"rq:queue:{MODEL}:standard") == 0


async def test_a_claim_sent_twice_gives_the_same_jobs(
    store: JobStore,
    make_job: MakeJob,
    worker: LeaseClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What happens when the connection broke after the script ran."""
    await submit_all(store, make_job(), make_job(), make_job())
    same = uuid.uuid4()
    monkeypatch.setattr(uuid, "uuid4", lambda: same)
    first = worker.claim([MODEL], 2)
    second = worker.claim([MODEL], 2)
    assert [(job.id, job.execution_id) for job in second] == [
        (job.id, job.execution_id) for job in first
    ]
    assert [job.attempt for job in second] == [1, 1]
    assert worker.finish(first[0], Outcome(Status.SUCCEEDED))
    assert [job.id for job in worker.claim([MODEL], 2)] == [first[1].id]
    assert (await store.stats()).queued == 1


async def test_two_workers_never_get_the_same_job(
    store: JobStore, make_job: MakeJob, make_worker: Callable[..., LeaseClient]
) -> None:
    ids = await submit_all(store, *(make_job() for _ in range(40)))
    workers = [make_worker(f"worker-{n}") for n in range(4)]

    def drain(worker: LeaseClient) -> list[str]:
        taken: list[str] = []
        while jobs := worker.claim([MODEL], 3):
            taken += [job.id for job in jobs]
        return taken

    taken = await asyncio.gather(*(asyncio.to_thread(drain, worker) for worker in workers))
    assert sorted(job_id for part in taken for job_id in part) == sorted(ids)


async def test_the_doorbell_wakes_an_idle_worker(
    store: JobStore, make_job: MakeJob, worker: LeaseClient
) -> None:
    waiting = asyncio.create_task(asyncio.to_thread(worker.wait_for_work, [MODEL, OTHER], 1.0))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    await store.submit(make_job(model=OTHER))
    await asyncio.wait_for(waiting, DOORBELL_SECONDS)
    assert len(worker.claim([MODEL, OTHER], 1)) == 1


async def test_an_empty_queue_keeps_no_doorbell_tokens(
    store: JobStore, redis_client: Redis, make_job: MakeJob, worker: LeaseClient
) -> None:
    await submit_all(store, make_job(), make_job(priority=Priority.BATCH))
    worker.claim([MODEL], 1)
    assert worker.claim([MODEL], 1, (Priority.INTERACTIVE,)) == []
    assert redis_client.exists(f"denoised:wake:{MODEL}"), "a job still waits"
    worker.claim([MODEL], 1)
    assert worker.claim([MODEL], 1) == []
    assert not redis_client.exists(f"denoised:wake:{MODEL}")


async def test_a_job_requeued_by_rq_starts_a_new_life_within_the_safety_poll(
    store: JobStore, redis_client: Redis, make_job: MakeJob, worker: LeaseClient
) -> None:
    [job_id] = await submit_all(store, make_job())
    for _ in range(3):
        [job] = worker.claim([MODEL], 1)
        failure = JobFailure(code=ErrorCode.INTERNAL, message="broken")
        if job.attempt < 3:
            assert worker.requeue(job, "test", False, Outcome(Status.FAILED).usage)
        else:
            assert worker.finish(job, Outcome(Status.FAILED, failure=failure))
    assert (await store.get(job_id)).status is Status.FAILED

    queue = f"{MODEL}:standard"
    registry = FailedJobRegistry(queue, connection=redis_client, serializer=JSONSerializer)
    registry.requeue(job_id)
    assert (await store.get(job_id)).status is Status.QUEUED

    start = time.monotonic()
    claimed: list[object] = []
    while not claimed:
        worker.wait_for_work([MODEL], 30.0)
        claimed += worker.claim([MODEL], 1)
        assert time.monotonic() - start < 10, "the safety poll did not come"
    record = await store.get(job_id)
    assert (record.status, record.attempt, record.error) == (Status.RUNNING, 1, None)
    assert redis_client.ttl(f"rq:job:{job_id}") == -1
    assert redis_client.zscore("denoised:expiry", job_id) is None
    kinds = [entry[b"type"] for _, entry in redis_client.xrange(f"denoised:ev:{job_id}")]
    assert kinds == [b"job.requeued", b"job.started"]


async def test_a_foreign_function_is_refused_and_never_run(
    store: JobStore,
    redis_client: Redis,
    make_job: MakeJob,
    worker: LeaseClient,
    tmp_path: object,
) -> None:
    marker = f"{tmp_path}/ran"
    [mine] = await submit_all(store, make_job())
    queue = Queue(f"{MODEL}:standard", connection=redis_client, serializer=JSONSerializer)
    foreign = [
        queue.enqueue("os.system", f"touch {marker}"),
        Queue(f"{MODEL}:standard", connection=redis_client).enqueue("os.system", f"touch {marker}"),
        queue.enqueue("denoised.generate", model=MODEL, input={}),
    ]
    assert [job.id for job in worker.claim([MODEL], 8)] == [mine]
    for job in foreign:
        assert job.get_status() == "failed"
        result = job.latest_result()
        assert result is not None
        assert "PermissionError" in str(result.exc_string)
    import os

    assert not os.path.exists(marker)
    assert json.loads(redis_client.hget(f"rq:job:{foreign[0].id}", "error") or b"{}")["code"] == (
        "invalid_input"
    )


async def test_the_wait_of_a_model_s_oldest_job_is_known_before_it_is_claimed(
    store: JobStore, redis_client: Redis, make_job: MakeJob, worker: LeaseClient
) -> None:
    patient, _, _ = await submit_all(
        store,
        make_job(model=OTHER, priority=Priority.BATCH),
        make_job(),
        make_job(model=OTHER, priority=Priority.INTERACTIVE),
    )
    age(redis_client, patient, 100.0)
    waits = worker.oldest_waiting([OTHER, "model-without-jobs"])
    assert waits.keys() == {OTHER}
    assert 100.0 <= waits[OTHER] < 160.0
    assert worker.oldest_waiting([OTHER], [Priority.INTERACTIVE])[OTHER] < 100.0
    assert worker.oldest_waiting([OTHER], []) == worker.oldest_waiting([]) == {}


async def test_jobs_of_a_key_at_its_quota_do_not_count_as_waiting_until_one_of_them_ends(
    store: JobStore, redis_client: Redis, make_job: MakeJob, worker: LeaseClient
) -> None:
    key, _ = KeyStore(redis_client).create("small", Quotas(max_running=1))
    await submit_all(store, make_job(owner=key.id))
    [running] = worker.claim([MODEL], 1)
    held_up, free = await submit_all(
        store, make_job(model=OTHER, owner=key.id), make_job(model=OTHER, owner="b")
    )
    age(redis_client, held_up, 100.0)
    assert worker.oldest_waiting([OTHER])[OTHER] < 100.0
    assert [job.id for job in worker.claim([OTHER], 2)] == [free]
    assert worker.oldest_waiting([OTHER]) == {}
    assert (await store.stats()).queued == 1, "it is shown all the same"
    failure = JobFailure(code=ErrorCode.INTERNAL, message="broken")
    assert worker.finish(running, Outcome(Status.FAILED, failure=failure))
    assert worker.oldest_waiting([OTHER])[OTHER] >= 100.0
    assert [job.id for job in worker.claim([OTHER], 2)] == [held_up]


async def test_what_rqs_tools_put_on_the_list_without_a_key_counts_until_a_claim_has_moved_it(
    store: JobStore, redis_client: Redis, make_job: MakeJob, worker: LeaseClient
) -> None:
    key, _ = KeyStore(redis_client).create("small", Quotas(max_running=1))
    await submit_all(store, make_job(owner=key.id))
    assert worker.claim([MODEL], 1)
    [held_up] = await submit_all(store, make_job(model=OTHER, owner=key.id))
    lane = f"rq:queue:{OTHER}:standard"
    assert redis_client.lmove(f"{lane}@{key.id}", lane) == held_up.encode()
    assert worker.oldest_waiting([OTHER]).keys() == {OTHER}
    assert worker.claim([OTHER], 1) == []
    assert worker.oldest_waiting([OTHER]) == {}
