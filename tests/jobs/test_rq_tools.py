"""RQ's own classes and command line understand our records, and cannot be made to run anything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from redis import Redis
from rq import Queue, SimpleWorker
from rq.job import Job, JobStatus
from rq.registry import (
    CanceledJobRegistry,
    FailedJobRegistry,
    FinishedJobRegistry,
    StartedJobRegistry,
)
from rq.results import Result
from rq.serializers import JSONSerializer

from config.settings import Settings
from jobs.dead_worker import take_back
from jobs.keeper import Keeper
from jobs.lease import LeaseClient
from jobs.rq_job import DenoiseJob
from jobs.store import JobStore
from jobs.types import ClaimedJob, ErrorCode, JobFailure, NewJob, Outcome, Output, Status, Usage
from jobs.worker_registry import WorkerInfo, announce

MODEL = "test-model"
QUEUE = f"{MODEL}:standard"
MakeJob = Callable[..., NewJob]


def fetch(client: Redis, job_id: str) -> Job:
    return Job.fetch(job_id, connection=client, serializer=JSONSerializer)


def counts(client: Redis) -> dict[str, int]:
    """What RQ counts in each of its registries of our queue."""
    registries = {
        "started": StartedJobRegistry,
        "finished": FinishedJobRegistry,
        "failed": FailedJobRegistry,
        "canceled": CanceledJobRegistry,
    }
    found = {
        name: registry(QUEUE, connection=client, serializer=JSONSerializer).get_job_count(
            cleanup=name != "canceled"
        )
        for name, registry in registries.items()
    }
    return {"queued": Queue(QUEUE, connection=client).count} | found


async def test_a_queued_job_reads_as_rq_wrote_it(
    store: JobStore, redis_client: Redis, make_job: MakeJob
) -> None:
    new = make_job(metadata={"order": 17})
    await store.submit(new)
    job = fetch(redis_client, new.id)
    assert job.get_status() is JobStatus.QUEUED
    assert job.func_name == "denoised.generate"
    assert job.args == []
    assert job.kwargs == {"model": MODEL, "input": new.input}
    assert job.meta == {"order": 17}
    assert (job.origin, job.description) == (QUEUE, f"denoise {MODEL}")
    assert job.created_at is not None
    assert job.enqueued_at == job.created_at
    assert Queue(QUEUE, connection=redis_client).job_ids == [new.id]
    assert [queue.name for queue in Queue.all(redis_client)] == [QUEUE]
    assert counts(redis_client)["queued"] == 1


async def test_a_running_job_is_started_and_safe_from_rqs_clean_up(
    store: JobStore,
    redis_client: Redis,
    make_job: MakeJob,
    worker: LeaseClient,
    lapse: Callable[[ClaimedJob], None],
) -> None:
    await store.submit(make_job())
    [claimed] = worker.claim([MODEL], 1)
    lapse(claimed)
    registry = StartedJobRegistry(QUEUE, connection=redis_client, serializer=JSONSerializer)
    registry.cleanup(timestamp=time.time() + 10**8)
    assert counts(redis_client) == {
        "queued": 0,
        "started": 1,
        "finished": 0,
        "failed": 0,
        "canceled": 0,
    }
    job = fetch(redis_client, claimed.id)
    assert job.get_status() is JobStatus.STARTED
    assert job.worker_name == "worker-a"
    assert job.started_at is not None
    assert registry.get_job_and_execution_ids() == [(claimed.id, claimed.execution_id)]
    assert worker.finish(claimed, Outcome(Status.SUCCEEDED)), "not failed by RQ meanwhile"


async def test_a_finished_job_has_its_outputs_as_result(
    store: JobStore,
    redis_client: Redis,
    make_job: MakeJob,
    worker: LeaseClient,
    output_of: Callable[[ClaimedJob], Output],
) -> None:
    await store.submit(make_job())
    [claimed] = worker.claim([MODEL], 1)
    worker.finish(claimed, Outcome(Status.SUCCEEDED, outputs=(output_of(claimed),)))
    job = fetch(redis_client, claimed.id)
    assert job.get_status() is JobStatus.FINISHED
    assert job.ended_at is not None
    result = job.latest_result()
    assert result is not None
    assert result.type is Result.Type.SUCCESSFUL
    assert result.return_value == [output_of(claimed).model_dump(mode="json")]
    assert (result.worker_name, result.execution_id) == ("worker-a", claimed.execution_id)
    assert result.execution_started_at is not None
    assert result.execution_ended_at is not None
    assert result.execution_started_at <= result.execution_ended_at
    assert len(job.results()) == 1
    assert counts(redis_client)["finished"] == 1


async def test_a_failed_job_says_why(
    store: JobStore, redis_client: Redis, make_job: MakeJob, worker: LeaseClient
) -> None:
    await store.submit(make_job())
    [claimed] = worker.claim([MODEL], 1)
    failure = JobFailure(code=ErrorCode.OUT_OF_MEMORY, message="too large — für dieses Gerät")
    worker.finish(claimed, Outcome(Status.FAILED, failure=failure))
    job = fetch(redis_client, claimed.id)
    assert job.get_status() is JobStatus.FAILED
    result = job.latest_result()
    assert result is not None
    assert result.type is Result.Type.FAILED
    assert result.exc_string == "out_of_memory: too large — für dieses Gerät"
    assert counts(redis_client)["failed"] == 1


async def test_a_poison_job_is_in_the_failed_registry_with_its_reasons(
    store: JobStore,
    redis_client: Redis,
    settings: Settings,
    make_job: MakeJob,
    worker: LeaseClient,
    keeper: Keeper,
    lapse: Callable[[ClaimedJob], None],
) -> None:
    record, _ = await store.submit(make_job())
    [claimed] = worker.claim([MODEL], 1)
    assert worker.requeue(claimed, "worker_failed", False, Usage(), 'ValueError: "für" \udc80')
    [claimed] = worker.claim([MODEL], 1)
    assert worker.requeue(claimed, "drained", True, Usage())
    [claimed] = worker.claim([MODEL], 1)
    lapse(claimed)
    keeper.run_once()
    worker.claim([MODEL], 1)
    take_back(redis_client, settings, "worker-a")
    why = "every allowed attempt lost its worker: "
    error = (await store.get(record.id)).error
    assert error is not None
    assert error.message == f"{why}worker_failed, lease_lapsed, worker_died"
    result = fetch(redis_client, record.id).latest_result()
    assert result is not None
    reasons = 'worker_failed (ValueError: "für" ?); lease_lapsed; worker_died'
    assert result.exc_string == f"worker_lost: {why}{reasons}"
    assert counts(redis_client) == {
        "queued": 0,
        "started": 0,
        "finished": 0,
        "failed": 1,
        "canceled": 0,
    }


async def test_a_job_that_rq_cancels_ends_as_one_that_we_cancel(
    store: JobStore,
    redis_client: Redis,
    make_job: MakeJob,
    worker: LeaseClient,
    keeper: Keeper,
    settings: Settings,
) -> None:
    queued, _ = await store.submit(make_job())
    fetch(redis_client, queued.id).cancel()
    assert keeper.run_once().cancelled == (queued.id,)
    assert keeper.run_once().cancelled == ()
    assert worker.claim([MODEL], 1) == []
    running, _ = await store.submit(make_job())
    [job] = worker.claim([MODEL], 1)
    fetch(redis_client, running.id).cancel()
    assert keeper.run_once().cancelled == (), "its worker ends it"
    assert worker.finish(job, Outcome(Status.CANCELLED))
    for record in (queued, running):
        ended = await store.get(record.id)
        assert ended.status is Status.CANCELLED
        assert ended.error is not None
        assert ended.error.code is ErrorCode.CANCELLED
        log = redis_client.xrange(f"denoised:ev:{record.id}")
        assert [entry[b"type"] for _, entry in log].count(b"job.cancelled") == 1
        assert 0 < redis_client.ttl(f"rq:job:{record.id}") <= settings.result_ttl_seconds
        assert redis_client.zscore("denoised:expiry", record.id) is not None


async def test_a_cancelled_job_is_in_the_canceled_registry(
    store: JobStore, redis_client: Redis, make_job: MakeJob
) -> None:
    record, _ = await store.submit(make_job())
    await store.cancel(record.id)
    assert fetch(redis_client, record.id).get_status() is JobStatus.CANCELED
    assert counts(redis_client)["canceled"] == 1


async def test_the_command_line_shows_queues_and_workers(
    settings: Settings,
    store: JobStore,
    redis_client: Redis,
    make_job: MakeJob,
    worker: LeaseClient,
) -> None:
    for _ in range(4):
        await store.submit(make_job())
    done, broken, _ = worker.claim([MODEL], 3)
    worker.finish(done, Outcome(Status.SUCCEEDED))
    failure = JobFailure(code=ErrorCode.INTERNAL, message="broken")
    worker.finish(broken, Outcome(Status.FAILED, failure=failure))
    announce(
        redis_client,
        WorkerInfo(
            name="worker-a",
            pid=4711,
            host="gpu-box",
            device="cpu",
            dtype="float32",
            models=(MODEL,),
            state="busy",
        ),
    )
    assert settings.redis_url is not None
    shown = subprocess.run(
        [sys.executable, "-m", "rq.cli", "info", "--raw", "--url", settings.redis_url],
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
    assert f"queue {QUEUE} 1, 1 executing, 1 finished, 1 failed" in shown.stdout
    assert "worker worker-a (gpu-box None 4711) busy" in shown.stdout
    assert QUEUE in shown.stdout.split("busy", 1)[1]


@pytest.mark.parametrize("function", ["os.system", "denoised.generate"])
def test_rqs_worker_with_our_job_class_runs_nothing(
    redis_client: Redis, tmp_path: Path, function: str
) -> None:
    marker = tmp_path / "ran"
    queue = Queue(QUEUE, connection=redis_client, serializer=JSONSerializer)
    job = queue.enqueue(function, f"touch {marker}")
    SimpleWorker(
        [queue], connection=redis_client, job_class=DenoiseJob, serializer=JSONSerializer
    ).work(burst=True, logging_level="CRITICAL")
    assert job.get_status() is JobStatus.FAILED
    result = job.latest_result()
    assert result is not None
    assert "PermissionError" in str(result.exc_string)
    assert not marker.exists()


def test_our_job_class_refuses_callbacks(redis_client: Redis) -> None:
    job = DenoiseJob("j", connection=redis_client)
    assert job.success_callback is job.failure_callback is job.stopped_callback is None
    job._success_callback_name = job._failure_callback_name = job._stopped_callback_name = (
        "os.abort"
    )
    for name in ("success_callback", "failure_callback", "stopped_callback"):
        with pytest.raises(PermissionError, match=r"os\.abort"):
            getattr(job, name)


def test_the_job_layer_imports_neither_rq_nor_a_tensor_library() -> None:
    """RQ's tools read our records; serving them needs only Redis."""
    code = (
        "import sys; import jobs.store, jobs.events, jobs.lease, jobs.keeper, jobs.schema, "
        "jobs.embedded_redis, jobs.worker_registry, jobs.blobs; "
        "import json; print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
    )
    root = Path(__file__).parents[2]
    output = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
    ).stdout
    assert not {"rq", "torch", "numpy", "fastapi", "starlette"} & set(json.loads(output))
