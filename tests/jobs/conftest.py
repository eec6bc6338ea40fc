"""What the job layer's tests share: an asyncio store, workers of the lease protocol, a keeper."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from config.settings import Settings
from jobs.blobs import FileBlobStore, output_key
from jobs.connections import connect_async
from jobs.keeper import Keeper
from jobs.lease import LeaseClient
from jobs.store import JobStore
from jobs.types import ClaimedJob, NewJob, Output

MODEL = "test-model"
REAP_FROM = "denoised:reap_from"
MakeJob = Callable[..., NewJob]
MakeWorker = Callable[..., LeaseClient]
ClaimOne = Callable[..., Awaitable[ClaimedJob]]
Lapse = Callable[[ClaimedJob], None]


@pytest.fixture
async def redis(settings: Settings) -> AsyncIterator[AsyncRedis]:
    """An asyncio client of the emptied server."""
    assert settings.redis_url is not None
    client = connect_async(settings.redis_url)
    yield client
    await client.aclose()


@pytest.fixture
async def store(redis: AsyncRedis, settings: Settings) -> JobStore:
    """The API's side of the job layer."""
    return JobStore(redis, settings)


@pytest.fixture
def make_job() -> MakeJob:
    """New jobs of `test-model`; keyword arguments override."""

    def make(**changes: Any) -> NewJob:
        fields: dict[str, Any] = {
            "id": f"job_{uuid.uuid4().hex}",
            "model": MODEL,
            "input": {"prompt": "a red circle", "num_inference_steps": 4, "seed": 7},
            "total_steps": 4,
        }
        return NewJob(**(fields | changes))

    return make


@pytest.fixture
def make_worker(settings: Settings) -> Iterator[MakeWorker]:
    """Workers by name, closed at the end."""
    made: list[LeaseClient] = []

    def make(name: str = "worker-a", settings: Settings = settings) -> LeaseClient:
        assert settings.redis_url is not None
        made.append(LeaseClient(settings.redis_url, settings, name))
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.fixture
def worker(make_worker: MakeWorker) -> LeaseClient:
    """One worker."""
    return make_worker()


@pytest.fixture
def claim_one(store: JobStore, make_job: MakeJob, worker: LeaseClient) -> ClaimOne:
    """Submits a job and has `worker` claim it, or another one; the queue must be empty."""

    async def claim(by: LeaseClient = worker) -> ClaimedJob:
        await store.submit(make_job())
        [job] = by.claim([MODEL], 1)
        return job

    return claim


@pytest.fixture
def blobs(settings: Settings) -> FileBlobStore:
    """The blob store of the test's data directory."""
    return FileBlobStore(settings.blob_dir)


@pytest.fixture
def keeper(redis_client: Redis, settings: Settings, blobs: FileBlobStore) -> Keeper:
    """A keeper past its guards, that sweeps on every round and gives no grace."""
    while redis_client.info("server")["uptime_in_seconds"] <= settings.lease_seconds + 1:
        time.sleep(0.1)
    redis_client.set(REAP_FROM, 0)
    return Keeper(redis_client, settings, blobs, orphan_grace_seconds=0, sweep_seconds=0)


@pytest.fixture
def lapse(redis_client: Redis) -> Lapse:
    """Moves the end of a job's lease into the past, keepers having looked on all the while."""

    def lapse(job: ClaimedJob) -> None:
        redis_client.set(REAP_FROM, 0)
        member = f"{job.id}:{job.execution_id}"
        assert redis_client.zadd("denoised:wip", {member: 1}, xx=True, ch=True) == 1

    return lapse


@pytest.fixture
def output_of() -> Callable[[ClaimedJob], Output]:
    """An output as a worker describes it."""

    def output(job: ClaimedJob) -> Output:
        return Output(
            key=output_key(job.id, job.execution_id, 0, "png"),
            content_type="image/png",
            width=64,
            height=64,
            bytes=3,
            sha256="0" * 64,
            seed=7,
        )

    return output
