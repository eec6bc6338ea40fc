"""Checkpoints in the job layer: who may move the pointer, who gets it, and that nothing stays."""

from __future__ import annotations

import json
from typing import Any

import pytest
from redis import Redis
from rq.job import Job
from rq.serializers import JSONSerializer

from config.settings import Settings
from jobs.blobs import FileBlobStore, input_key
from jobs.checkpoints import CHECKPOINTS, checkpoint_key, is_checkpoint_of
from jobs.keeper import Keeper
from jobs.lease import LeaseClient
from jobs.store import JobStore
from jobs.types import (
    Checkpoint,
    ClaimedJob,
    ErrorCode,
    JobFailure,
    Outcome,
    Progress,
    Stage,
    Status,
    Usage,
)
from tests.jobs.conftest import MODEL, ClaimOne, Lapse, MakeWorker

FAILURE = JobFailure(code=ErrorCode.INTERNAL, message="broken")


def taken(job: ClaimedJob, step: int) -> Checkpoint:
    return Checkpoint(checkpoint_key(job.id, job.execution_id, step), step, f"{step:064x}")


def stored(blobs: FileBlobStore, job: ClaimedJob, step: int) -> Checkpoint:
    checkpoint = taken(job, step)
    blobs.put(checkpoint.key, b"state")
    return checkpoint


def cost(steps: int, resumed: int = 0) -> Usage:
    return Usage(gpu_seconds=0.5 * steps, steps=steps, resumed_steps=resumed)


def events(client: Redis, job_id: str, kind: str) -> list[dict[str, Any]]:
    entries = client.xrange(f"denoised:ev:{job_id}")
    return [json.loads(e[b"data"]) for _, e in entries if e[b"type"] == f"job.{kind}".encode()]


def left(blobs: FileBlobStore, job_id: str) -> list[str]:
    return blobs.keys_in(f"jobs/{job_id}/{CHECKPOINTS}")


async def test_whoever_claims_a_lost_job_gets_its_checkpoint_and_watchers_the_step(
    claim_one: ClaimOne,
    store: JobStore,
    redis_client: Redis,
    worker: LeaseClient,
    keeper: Keeper,
    lapse: Lapse,
) -> None:
    job = await claim_one()
    assert job.checkpoint is None
    assert worker.record_checkpoint(job, taken(job, 2), cost(2))
    worker.report([Progress(job, Stage.DENOISING, 3, 4)])
    lapse(job)
    keeper.run_once()
    [event] = events(redis_client, job.id, "requeued")
    assert (event["cause"], event["step"]) == ("lease_lapsed", 2)
    assert (await store.get(job.id)).step == 2
    [again] = worker.claim([MODEL], 1)
    assert again.checkpoint == taken(job, 2)
    assert (again.attempt, (await store.get(job.id)).step) == (2, 2)


async def test_a_job_without_a_checkpoint_goes_on_from_step_zero(
    claim_one: ClaimOne, redis_client: Redis, worker: LeaseClient
) -> None:
    job = await claim_one()
    worker.report([Progress(job, Stage.DENOISING, 3, 4)])
    worker.requeue(job, "drained", True, Usage())
    [event] = events(redis_client, job.id, "requeued")
    assert event["step"] == 0
    assert worker.claim([MODEL], 1)[0].checkpoint is None


async def test_only_the_holder_of_the_lease_moves_the_pointer(
    claim_one: ClaimOne, store: JobStore, make_worker: MakeWorker, keeper: Keeper, lapse: Lapse
) -> None:
    zombie, other = make_worker("zombie"), make_worker("other")
    job = await claim_one(zombie)
    assert zombie.record_checkpoint(job, taken(job, 1), cost(1))
    lapse(job)
    keeper.run_once()
    # Neither while nobody holds the job nor while somebody else does.
    assert not zombie.record_checkpoint(job, taken(job, 2), cost(2))
    [again] = other.claim([MODEL], 1)
    assert again.checkpoint == taken(job, 1)
    assert not zombie.record_checkpoint(job, taken(job, 3), cost(3))
    other.requeue(again, "drained", True, Usage())
    [last] = other.claim([MODEL], 1)
    assert last.checkpoint == taken(job, 1)
    assert (await store.get(job.id)).usage.steps == 1


async def test_an_older_checkpoint_never_replaces_a_newer_one(
    claim_one: ClaimOne, worker: LeaseClient
) -> None:
    job = await claim_one()
    assert worker.record_checkpoint(job, taken(job, 3), cost(3))
    assert not worker.record_checkpoint(job, taken(job, 2), cost(2))
    worker.requeue(job, "drained", True, cost(3))
    [again] = worker.claim([MODEL], 1)
    assert again.checkpoint == taken(job, 3)
    assert not worker.record_checkpoint(again, taken(again, 3), cost(0))


async def test_what_a_killed_attempt_cost_counts_up_to_its_checkpoint_and_once(
    claim_one: ClaimOne, store: JobStore, worker: LeaseClient, keeper: Keeper, lapse: Lapse
) -> None:
    job = await claim_one()
    worker.record_checkpoint(job, taken(job, 1), cost(1))
    worker.record_checkpoint(job, taken(job, 2), cost(2))
    # Sent again after a broken connection.
    assert worker.record_checkpoint(job, taken(job, 2), cost(2))
    assert (await store.get(job.id)).usage == cost(2)
    lapse(job)
    keeper.run_once()
    [again] = worker.claim([MODEL], 1)
    worker.record_checkpoint(again, taken(again, 3), cost(1, resumed=2))
    assert (await store.get(job.id)).usage == Usage(gpu_seconds=1.5, steps=3, resumed_steps=2)
    worker.finish(again, Outcome(Status.SUCCEEDED, usage=cost(2, resumed=2)))
    assert (await store.get(job.id)).usage == Usage(gpu_seconds=2.0, steps=4, resumed_steps=2)


async def test_a_last_word_without_figures_takes_nothing_back(
    claim_one: ClaimOne, store: JobStore, worker: LeaseClient
) -> None:
    job = await claim_one()
    worker.record_checkpoint(job, taken(job, 2), cost(2))
    worker.requeue(job, "worker_hung", False, Usage())
    assert (await store.get(job.id)).usage == cost(2)


async def test_a_useless_checkpoint_is_forgotten_and_said_to_be_once(
    claim_one: ClaimOne, store: JobStore, redis_client: Redis, worker: LeaseClient
) -> None:
    job = await claim_one()
    worker.record_checkpoint(job, taken(job, 3), cost(3))
    worker.requeue(job, "drained", True, cost(3))
    [again] = worker.claim([MODEL], 1)
    assert worker.restarted(again, "checkpoint_damaged")
    assert worker.restarted(again, "checkpoint_damaged")
    [event] = events(redis_client, job.id, "restarted")
    assert (event["status"], event["cause"], event["step"]) == ("running", "checkpoint_damaged", 0)
    assert (await store.get(job.id)).step == 0
    # The new beginning may leave an earlier step behind, which now counts.
    assert worker.record_checkpoint(again, taken(again, 1), cost(1))
    worker.requeue(again, "drained", True, cost(1))
    assert events(redis_client, job.id, "requeued")[-1]["step"] == 1
    assert not worker.restarted(again, "checkpoint_damaged")
    with pytest.raises(ValueError, match="no checkpoint"):
        worker.restarted(job, "checkpoint_damaged")


@pytest.mark.parametrize("ending", ["succeeded", "failed", "cancelled", "poisoned", "withdrawn"])
async def test_nothing_is_left_of_the_checkpoints_of_a_job_that_ended(
    claim_one: ClaimOne,
    ending: str,
    store: JobStore,
    redis_client: Redis,
    worker: LeaseClient,
    keeper: Keeper,
    lapse: Lapse,
    blobs: FileBlobStore,
) -> None:
    job = await claim_one()
    assert worker.record_checkpoint(job, stored(blobs, job, 1), cost(1))
    stored(blobs, job, 2)
    if ending == "succeeded":
        worker.finish(job, Outcome(Status.SUCCEEDED))
    elif ending == "failed":
        worker.finish(job, Outcome(Status.FAILED, failure=FAILURE))
    elif ending == "cancelled":
        await store.cancel(job.id)
        worker.finish(job, Outcome(Status.CANCELLED))
    elif ending == "withdrawn":
        worker.requeue(job, "drained", True, cost(1))
        await store.cancel(job.id)
    else:
        for _ in range(3):
            lapse(job)
            keeper.run_once()
            [job] = worker.claim([MODEL], 1) or [job]
    assert (await store.get(job.id)).status.is_terminal
    fields = redis_client.hkeys(f"rq:job:{job.id}")
    assert not [name for name in fields if name.startswith(b"checkpoint")]
    keeper.run_once()
    assert left(blobs, job.id) == []


async def test_an_expired_job_takes_its_checkpoints_along(
    claim_one: ClaimOne,
    redis_client: Redis,
    worker: LeaseClient,
    keeper: Keeper,
    blobs: FileBlobStore,
) -> None:
    job = await claim_one()
    worker.finish(job, Outcome(Status.FAILED, failure=FAILURE))
    stored(blobs, job, 2)
    redis_client.zadd("denoised:expiry", {job.id: 1})
    keeper.run_once()
    assert left(blobs, job.id) == []


async def test_the_sweep_spares_what_may_still_be_resumed_from(
    claim_one: ClaimOne, worker: LeaseClient, keeper: Keeper, blobs: FileBlobStore
) -> None:
    first = await claim_one()
    dead = stored(blobs, first, 1)
    kept = stored(blobs, first, 2)
    worker.record_checkpoint(first, kept, cost(2))
    blobs.put(input_key(first.id, "video"), b"input")
    keeper.run_once()
    # Its worker lives and may be about to record either.
    assert set(left(blobs, first.id)) == {dead.key, kept.key}
    worker.requeue(first, "drained", True, cost(2))
    assert keeper.run_once().orphans == 1
    assert left(blobs, first.id) == [kept.key]
    [again] = worker.claim([MODEL], 1)
    written = stored(blobs, again, 3)
    keeper.run_once()
    assert set(left(blobs, first.id)) == {kept.key, written.key}
    assert worker.record_checkpoint(again, written, cost(1))
    keeper.run_once()
    assert left(blobs, first.id) == [written.key]
    assert blobs.read(input_key(first.id, "video")) == b"input"


async def test_a_checkpoint_recorded_while_the_keeper_looks_is_not_swept(
    claim_one: ClaimOne, worker: LeaseClient, redis_client: Redis, settings: Settings
) -> None:
    """Another worker claims the job and moves the pointer between two looks of the keeper's."""
    first = await claim_one()
    worker.record_checkpoint(first, stored(FileBlobStore(settings.blob_dir), first, 1), cost(1))
    worker.requeue(first, "drained", True, cost(1))
    recorded: list[Checkpoint] = []

    class Meanwhile(FileBlobStore):
        def keys_in(self, prefix: str) -> list[str]:
            [again] = worker.claim([MODEL], 1)
            recorded.append(stored(self, again, 2))
            assert worker.record_checkpoint(again, recorded[0], cost(1))
            return super().keys_in(prefix)

    blobs = Meanwhile(settings.blob_dir)
    Keeper(redis_client, settings, blobs, orphan_grace_seconds=0, sweep_seconds=0).run_once()
    assert blobs.read(recorded[0].key) == b"state"


async def test_what_a_dead_worker_left_goes_while_the_job_runs_and_is_checkpointed(
    claim_one: ClaimOne,
    worker: LeaseClient,
    redis_client: Redis,
    settings: Settings,
    blobs: FileBlobStore,
) -> None:
    first = await claim_one()
    stored(blobs, first, 1)
    worker.requeue(first, "worker_died", False, cost(1))
    [again] = worker.claim([MODEL], 1)
    kept = stored(blobs, again, 2)
    worker.record_checkpoint(again, kept, cost(1))
    assert Keeper(redis_client, settings, blobs, sweep_seconds=0).run_once().orphans == 1
    assert left(blobs, first.id) == [kept.key]


async def test_checkpoints_of_a_job_that_redis_does_not_know_stay_as_long_as_results(
    keeper: Keeper, blobs: FileBlobStore, settings: Settings
) -> None:
    key = checkpoint_key("job_unknown", "e-1", 3)
    blobs.put(key, b"state")
    assert keeper.run_once().orphans == 0
    assert blobs.read(key) == b"state"


async def test_a_job_put_to_work_again_after_its_end_starts_anew(
    claim_one: ClaimOne, store: JobStore, redis_client: Redis, worker: LeaseClient
) -> None:
    job = await claim_one()
    worker.record_checkpoint(job, taken(job, 3), cost(3))
    worker.finish(job, Outcome(Status.FAILED, failure=FAILURE))
    Job.fetch(job.id, connection=redis_client, serializer=JSONSerializer).requeue()
    [again] = worker.claim([MODEL], 1)
    assert (again.checkpoint, (await store.get(job.id)).step) == (None, 0)


def test_keys_of_other_jobs_are_told_apart() -> None:
    assert is_checkpoint_of("a", checkpoint_key("a", "e-1", 3))
    assert not is_checkpoint_of("a", checkpoint_key("ab", "e-1", 3))
    assert not is_checkpoint_of("a", "jobs/a/inputs/video")
