"""The API's side of the job layer: submit, read, list, cancel, delete, depths.

Every change is one script call, every read one round trip.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from redis.asyncio import Redis

from config.settings import Settings
from jobs import keys, listing, metrics, scripts
from jobs.costs import CostModel
from jobs.errors import (
    DeadlineTooSoon,
    ForeignJob,
    IdempotencyConflict,
    JobActive,
    JobNotFound,
    QueueFull,
    QuotaExceeded,
    store_errors,
)
from jobs.rq_record import (
    FROM_RQ,
    QueueOutlook,
    encode_call,
    fields_to_dict,
    new_record,
    record_from_fields,
)
from jobs.submit_batch import SubmitBatch
from jobs.types import JobRecord, NewJob, Priority, Status

DEFAULT_RETRY_AFTER = 10
"""Seconds to wait for room in a queue while no pace is known."""

MAX_RETRY_AFTER = 600
"""Seconds: room in a queue comes and goes, so whoever waits for it looks again after these."""

_IDEMPOTENCY = ["id", "fingerprint"]

JobPage = tuple[list[JobRecord], str | None]
BlobKeys = list[str]


@dataclass(frozen=True)
class QueueDepth:
    """One queue now. `oldest_seconds` is the age of the oldest job that is its key's next, None
    when empty; `gpu_seconds` what all that wait will cost, None until the model is measured.
    """

    model: str
    priority: Priority
    queued: int
    running: int
    oldest_seconds: float | None
    gpu_seconds: float | None = None


@dataclass(frozen=True)
class QueueStats:
    """All queues now."""

    queues: tuple[QueueDepth, ...]

    @property
    def queued(self) -> int:
        """Jobs waiting, in all queues."""
        return sum(queue.queued for queue in self.queues)

    @property
    def running(self) -> int:
        """Jobs under a lease, in all queues."""
        return sum(queue.running for queue in self.queues)


class JobStore:
    """Jobs in Redis, for an asyncio server.

    `redis` answers in bytes (`jobs.connections.connect_async`). Every method raises
    `StoreUnavailable` when Redis cannot be reached. `owner` is the id of the API key on whose
    behalf it is called, empty for none; jobs of others are not found.
    """

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._redis = redis
        self._settings = settings
        self._submits = SubmitBatch(redis)
        self.costs = CostModel(redis)

    async def submit(self, job: NewJob) -> tuple[JobRecord, bool]:
        """Accepts a job, all or nothing. Returns its record and whether this call created it.

        With an idempotency key used before for the same fingerprint, returns the earlier job.
        Raises `QueueFull`, `QuotaExceeded`, `DeadlineTooSoon` and `IdempotencyConflict`; nothing is
        stored then.
        """
        limits = self._settings
        estimate = await self.costs.estimate(job.model, job.input, job.total_steps)
        reply = await self._submits.submit(
            [
                job.id,
                job.model,
                job.priority.value,
                encode_call(job),
                json.dumps(job.metadata) if job.metadata else "",
                f"denoise {job.model}",
                int(job.deterministic),
                job.total_steps,
                limits.max_attempts,
                limits.max_queued_jobs,
                _digest(job.idempotency_key, job.owner),
                job.fingerprint,
                limits.idempotency_ttl_seconds,
                job.owner,
                *((estimate.gpu_seconds, estimate.run_seconds) if estimate else ("", "")),
                "" if job.deadline_seconds is None else job.deadline_seconds,
            ]
        )
        match reply[0]:
            case b"created":
                metrics.JOBS_SUBMITTED.labels(job.model, job.priority.value).inc()
                outlook = QueueOutlook.of(reply[2:])
                return new_record(job, limits.max_attempts, int(reply[1]), outlook), True
            case b"existing":
                return await self.get(reply[1].decode(), job.owner), False
            case b"conflict":
                raise IdempotencyConflict(reply[1].decode())
            case b"quota":
                quota, wait = reply[1].decode(), _retry_after(reply[3])
                if quota == "max_queued":
                    wait = min(wait, MAX_RETRY_AFTER)
                raise QuotaExceeded(quota, float(reply[2]), wait)
            case b"late":
                raise DeadlineTooSoon(job.deadline_seconds or 0.0, *map(float, reply[1:]))
            case _:
                raise QueueFull(min(_retry_after(reply[1]), MAX_RETRY_AFTER))

    async def earlier(
        self, idempotency_key: str, fingerprint: str, owner: str = ""
    ) -> JobRecord | None:
        """The job that this key made before, if any. Raises `IdempotencyConflict`.

        Only a shortcut: `submit` decides.
        """
        digest = keys.idempotency_digest(idempotency_key, owner)
        with store_errors():
            fields = await cast("Any", self._redis.hmget(keys.idempotency(digest), _IDEMPOTENCY))
        if fields[0] is None:
            return None
        try:
            record = await self.get(fields[0].decode(), owner)
        except JobNotFound:
            return None
        if fields[1] != fingerprint.encode():
            raise IdempotencyConflict(record.id)
        return record

    async def get(self, job_id: str, owner: str = "") -> JobRecord:
        """The job now, with its place in the queue. Raises `JobNotFound`."""
        with store_errors():
            reply = await scripts.run_async(self._redis, scripts.READ, [job_id])
        record = _record(job_id, *reply)
        if record.owner != owner:
            raise JobNotFound(job_id)
        return record

    async def cancel(self, job_id: str, owner: str = "") -> JobRecord:
        """Ends a queued job at once, asks a running one to stop, leaves an ended one as it is.

        One whose model is being loaded counts as queued: nothing has been done for it.
        """
        limits = self._settings
        with store_errors():
            settled, *state = await scripts.run_async(
                self._redis,
                scripts.CANCEL,
                [job_id, owner, limits.result_ttl_seconds, limits.event_ttl_seconds],
            )
        record = _record(job_id, *state)
        if settled:
            metrics.JOBS_FINISHED.labels(record.model, Status.CANCELLED.value).inc()
        return record

    async def delete(self, job_id: str, owner: str = "") -> BlobKeys:
        """Removes an ended job; returns the blob keys of its outputs for the caller to remove.

        The keeper sweeps whatever blobs of the job are left. Raises `JobNotFound` and `JobActive`.
        """
        with store_errors():
            reply = await scripts.run_async(self._redis, scripts.DELETE, [job_id, owner])
        if reply[0] == b"missing":
            raise JobNotFound(job_id)
        if reply[0] == b"active":
            raise JobActive(job_id, FROM_RQ[reply[1].decode()].value)
        return [output["key"] for output in json.loads(reply[1] or b"[]")]

    async def stats(self) -> QueueStats:
        """Depth, running jobs and age of every queue, in one round trip."""
        with store_errors():
            reply = await scripts.run_async(self._redis, scripts.STATS, [])
        depths = []
        for name, queued, running, oldest, seconds in sorted(reply):
            model, priority = keys.split_queue_name(name.decode())
            age = float(oldest) if oldest else None
            gpu_seconds = float(seconds) if seconds else None
            depths.append(QueueDepth(model, priority, queued, running, age, gpu_seconds))
        return QueueStats(tuple(depths))

    async def ping(self) -> None:
        """Returns when Redis answers, else raises `StoreUnavailable`."""
        with store_errors():
            await cast("Any", self._redis.ping())

    async def list(
        self,
        *,
        status: Status | None = None,
        model: str | None = None,
        limit: int = 20,
        cursor: str | None = None,
        owner: str = "",
    ) -> JobPage:
        """A page of jobs, newest first, and the cursor of the next page, None at the end.

        Pages stay aligned while jobs arrive. With filters a page may be shorter than `limit` though
        more follow: the search stops after a bounded number of jobs. Raises `ValueError` for a
        malformed cursor or a limit below 1.
        """
        with store_errors():
            return await listing.page(
                self._redis, owner, status=status, model=model, limit=limit, cursor=cursor
            )


def _record(job_id: str, flat: Sequence[bytes], *outlook: Any) -> JobRecord:
    if not flat:
        raise JobNotFound(job_id)
    try:
        return record_from_fields(job_id, fields_to_dict(flat), QueueOutlook.of(outlook))
    except ForeignJob as error:
        raise JobNotFound(job_id) from error


def _digest(idempotency_key: str | None, owner: str) -> str:
    return keys.idempotency_digest(idempotency_key, owner) if idempotency_key else ""


def _retry_after(seconds: bytes) -> int:
    """Whole seconds to wait, at least 1, from what the submit script tells."""
    return max(math.ceil(float(seconds)), 1) if seconds else DEFAULT_RETRY_AFTER
