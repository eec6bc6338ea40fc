"""The list of workers: who is there, who has gone, and whose workers are not ours."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from jobs.lease import LeaseClient
from jobs.store import JobStore
from jobs.types import NewJob
from jobs.worker_registry import (
    WORKER_TTL_SECONDS,
    WorkerInfo,
    announce,
    forget_dead,
    list_workers,
    retire,
)


def info(**changes: Any) -> WorkerInfo:
    fields: dict[str, Any] = {
        "name": "worker-a",
        "pid": 1,
        "host": "here",
        "device": "cpu",
        "dtype": "float32",
        "models": ("test-model",),
        "model_errors": {"broken": "tensor x is missing"},
        "state": "busy",
        "last_progress_at": datetime.now(UTC),
        "memory_bytes": 1 << 30,
    }
    return WorkerInfo(**fields | changes)


async def test_what_a_worker_says_is_what_is_listed(redis_client: Redis, redis: AsyncRedis) -> None:
    assert await list_workers(redis) == []
    both = [info(), info(name="worker-b", state="idle", last_progress_at=None)]
    for worker in reversed(both):
        announce(redis_client, worker)
    assert await list_workers(redis) == both
    announce(redis_client, newer := both[0].model_copy(update={"state": "draining"}))
    assert await list_workers(redis) == [newer, both[1]]


async def test_a_worker_that_retires_is_gone_at_once(
    redis_client: Redis, redis: AsyncRedis
) -> None:
    announce(redis_client, info())
    retire(redis_client, "worker-a")
    retire(redis_client, "worker-a")
    assert await list_workers(redis) == []
    assert redis_client.keys("*") == []


@pytest.mark.parametrize("kept", [("test-model",), ()])
async def test_a_worker_is_off_the_queues_of_a_model_that_it_serves_no_more(
    redis_client: Redis, kept: tuple[str, ...]
) -> None:
    announce(redis_client, info(models=("test-model",), on_demand=("broken",)))
    announce(redis_client, info(name="worker-b", models=("broken",)))
    announce(redis_client, info(models=kept))
    assert redis_client.smembers("rq:workers:broken:standard") == {b"rq:worker:worker-b"}
    on_it = {b"rq:worker:worker-a"} if kept else set()
    assert redis_client.smembers("rq:workers:test-model:standard") == on_it
    assert redis_client.smembers("rq:workers") == {b"rq:worker:worker-a", b"rq:worker:worker-b"}


@pytest.mark.parametrize("by", [forget_dead, lambda client: retire(client, "worker-a")])
async def test_a_worker_whose_entry_had_expired_is_taken_off_the_lists_it_is_still_on(
    store: JobStore,
    redis_client: Redis,
    make_job: Callable[..., NewJob],
    by: Callable[[Redis], None],
) -> None:
    """Frozen for longer than its entry lives, it forgot what it had served before."""
    await store.submit(make_job())
    announce(redis_client, info())
    redis_client.delete("rq:worker:worker-a")
    redis_client.srem("rq:workers", "rq:worker:worker-a")
    by(redis_client)
    assert redis_client.keys("rq:workers*:standard") == []


async def test_a_silent_worker_falls_off_the_list(redis_client: Redis, redis: AsyncRedis) -> None:
    announce(redis_client, info())
    assert 0 < redis_client.ttl("rq:worker:worker-a") <= WORKER_TTL_SECONDS
    redis_client.delete("rq:worker:worker-a")
    assert await list_workers(redis) == []


async def test_a_worker_is_listed_with_how_long_it_has_been_silent(
    redis_client: Redis, redis: AsyncRedis
) -> None:
    announce(redis_client, info())
    redis_client.expire("rq:worker:worker-a", WORKER_TTL_SECONDS - 9)
    [found] = await list_workers(redis)
    assert found.silent_seconds == 9


async def test_workers_of_other_applications_are_left_out(
    redis_client: Redis, redis: AsyncRedis
) -> None:
    redis_client.sadd("rq:workers", "rq:worker:stranger")
    redis_client.hset("rq:worker:stranger", "state", "idle")
    announce(redis_client, info())
    assert [worker.name for worker in await list_workers(redis)] == ["worker-a"]


async def test_the_lease_client_announces_over_its_own_connections(
    redis: AsyncRedis, worker: LeaseClient
) -> None:
    worker.announce(info())
    assert [found.name for found in await list_workers(redis)] == ["worker-a"]
    worker.retire()
    assert await list_workers(redis) == []
