"""Who is working: each worker announces itself, RQ's tools and the API read the list.

The hash `rq:worker:<name>` carries the fields `rq info` shows and our own description as JSON; it
lives 30 s past the last announcement, so a dead worker falls off the list by itself; the keeper
takes its name off RQ's sets.
"""

from __future__ import annotations

import socket
from datetime import UTC, datetime
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from jobs import keys
from jobs.errors import store_errors
from jobs.types import Priority

WORKER_TTL_SECONDS = 30
"""How long a worker that has gone silent stays on the list."""

RQ_TIME = "%Y-%m-%dT%H:%M:%S.%fZ"


def worker_name(pid: int, tag: str) -> str:
    """The name of a worker process of this host.

    `tag` tells it from processes of the same number in other containers under the same host name.
    """
    return f"{socket.gethostname()}.{pid}.{tag}"


class WorkerInfo(BaseModel):
    """One worker as it describes itself. `last_progress_at` is when it last got a step done."""

    model_config = ConfigDict(frozen=True)

    name: str
    pid: int
    host: str
    device: str
    dtype: str
    models: tuple[str, ...] = Field(default=(), description="Ids resident and served.")
    on_demand: tuple[str, ...] = Field(
        default=(), description="Ids served but loaded only when jobs wait for them."
    )
    loading: str | None = Field(default=None, description="Id of the model that it is loading.")
    residency: dict[str, str] = Field(
        default_factory=dict,
        description="How each model's weights rest in memory, by id: packed, fp8 or a dtype.",
    )
    model_bytes: dict[str, int] = Field(
        default_factory=dict,
        description="Device memory of each resident model's weights, by id, where it was measured.",
    )
    model_errors: dict[str, str] = Field(
        default_factory=dict, description="Why a model is not served, by id."
    )
    state: Literal["idle", "busy", "starting", "draining"] = "starting"
    started_at: datetime = Field(default_factory=lambda: datetime.now(UTC))
    last_progress_at: datetime | None = None
    memory_bytes: int = Field(default=0, description="Resident memory of the process.")
    silent_seconds: int = Field(
        default=0, exclude=True, description="Since the announcement, by Redis' clock."
    )


def announce(redis: Redis, info: WorkerInfo) -> None:
    """Writes or refreshes the worker; to be called well within every 30 s.

    Takes it off the queues that it has served until now and does not any more.
    """
    served = (*info.models, *info.on_demand)
    queues = [keys.queue_name(model, priority) for model in served for priority in Priority]
    key = keys.worker(info.name)
    left = _queues_in(redis.hget(key, "queues")) - set(queues)
    pipeline = redis.pipeline(transaction=True)
    pipeline.hset(
        key,
        mapping={
            "birth": info.started_at.strftime(RQ_TIME),
            "last_heartbeat": datetime.now(UTC).strftime(RQ_TIME),
            "queues": ",".join(queues),
            "pid": info.pid,
            "hostname": info.host,
            "ip_address": "",
            "version": "",
            "python_version": "",
            "state": info.state,
            "denoised": info.model_dump_json(),
        },
    )
    pipeline.expire(key, WORKER_TTL_SECONDS)
    if info.loading is not None:
        pipeline.expire(keys.loading(info.loading), WORKER_TTL_SECONDS)
    pipeline.sadd(keys.WORKERS, key)
    for queue in queues:
        pipeline.sadd(keys.workers_of(queue), key)
    for queue in sorted(left):
        pipeline.srem(keys.workers_of(queue), key)
    pipeline.execute()


def retire(redis: Redis, name: str) -> None:
    """Takes the worker off the list."""
    key = keys.worker(name)
    queues = _queues_in(redis.hget(key, "queues")) | _queues_with_jobs(redis)
    pipeline = redis.pipeline(transaction=True)
    for queue in sorted(queues):
        pipeline.srem(keys.workers_of(queue), key)
    pipeline.srem(keys.WORKERS, key)
    pipeline.delete(key)
    pipeline.execute()


def forget(redis: Redis, name: str) -> None:
    """Takes a dead worker off the list, unless its last word was that it serves no model.

    Then it says why, which is to be read for as long as the entry lives.
    """
    if _queues_in(redis.hget(keys.worker(name), "queues")):
        retire(redis, name)


def forget_dead(redis: Redis) -> None:
    """Takes workers that ended without retiring off RQ's sets, where they would stay for ever."""
    pipeline = redis.pipeline(transaction=False)
    for worker in sorted(cast("set[bytes]", redis.smembers(keys.WORKERS))):
        pipeline.hget(worker, "queues")
    queues = _queues_with_jobs(redis).union(*map(_queues_in, pipeline.execute()))
    # A list may name one that `keys.WORKERS` has lost.
    lists = [keys.WORKERS, *(keys.workers_of(queue) for queue in sorted(queues))]
    for listed in lists:
        pipeline.smembers(listed)
    members = dict(zip(lists, pipeline.execute(), strict=True))
    names = sorted(set[bytes]().union(*members.values()))
    for name in names:
        pipeline.exists(name)
    dead = {name for name, lives in zip(names, pipeline.execute(), strict=True) if not lives}
    for listed, those in members.items():
        if those & dead:
            pipeline.srem(listed, *(those & dead))
    pipeline.execute()


def _queues_in(field: Any) -> set[str]:
    """Of a worker's field `queues`, None where there is no such worker."""
    return set(field.decode().split(",")) - {""} if field else set()


def _queues_with_jobs(redis: Redis) -> set[str]:
    """Queues that have ever had a job."""
    return {name.decode() for name in cast("set[bytes]", redis.smembers(keys.QUEUES))}


async def list_workers(redis: AsyncRedis) -> list[WorkerInfo]:
    """Living workers by name, two round trips. Raises `StoreUnavailable`.

    Workers of other RQ applications on the same Redis are left out.
    """
    with store_errors():
        names = sorted(await cast("Any", redis.smembers(keys.WORKERS)))
        if not names:
            return []
        pipeline = redis.pipeline(transaction=False)
        for name in names:
            pipeline.hget(name.decode(), "denoised")
            pipeline.ttl(name.decode())
        replies = await pipeline.execute()
    return [
        WorkerInfo.model_validate_json(text).model_copy(
            update={"silent_seconds": WORKER_TTL_SECONDS - seconds_left}
        )
        for text, seconds_left in zip(replies[::2], replies[1::2], strict=True)
        if text
    ]
