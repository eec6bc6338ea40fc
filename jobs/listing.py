"""Pages of jobs, newest first, that stay aligned while jobs arrive and go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from redis.asyncio import Redis

from jobs import keys, scripts
from jobs.errors import ForeignJob
from jobs.rq_record import QueueOutlook, fields_to_dict, record_from_fields
from jobs.time_index import Cursor, older_than
from jobs.types import JobRecord, Status

CHUNK = 256
MOST_CHUNKS = 8
"""A filtered page looks at no more than their product of jobs before it hands out a cursor."""

FEWEST_READ = 16
"""Records fetched in one round trip, at least."""


async def page(
    redis: Redis,
    owner: str,
    *,
    status: Status | None,
    model: str | None,
    limit: int,
    cursor: str | None,
) -> tuple[list[JobRecord], str | None]:
    """Up to `limit` jobs of `owner` after `cursor`, and the next cursor, None at the end.

    Raises `ValueError` for a malformed cursor or a limit below 1.
    """
    if limit < 1:
        raise ValueError(f"limit is {limit}; it must be at least 1")
    place = Cursor.parse(cursor) if cursor is not None else None
    index = keys.listing(keys.INDEX, owner)
    found: list[JobRecord] = []
    for _ in range(MOST_CHUNKS):
        chunk = await older_than(redis, index, place, CHUNK)
        step = max(limit, FEWEST_READ)
        for start in range(0, len(chunk), step):
            part = chunk[start : start + step]
            for entry, record in zip(part, await _records(redis, part), strict=True):
                place = entry
                if record is None or not _matches(record, owner, status, model):
                    continue
                found.append(record)
                if len(found) == limit:
                    return found, str(entry)
        if len(chunk) < CHUNK:
            return found, None
    return found, str(place)


def _matches(record: JobRecord, owner: str, status: Status | None, model: str | None) -> bool:
    if record.owner != owner:
        return False
    return (status is None or record.status is status) and (model is None or record.model == model)


async def _records(redis: Redis, entries: Sequence[Cursor]) -> list[JobRecord | None]:
    """Records of several jobs in one round trip; None for one that has gone."""
    replies = await scripts.run_many_async(redis, scripts.READ, [[entry.id] for entry in entries])
    return [_record(entry.id, reply) for entry, reply in zip(entries, replies, strict=True)]


def _record(job_id: str, reply: Any) -> JobRecord | None:
    if isinstance(reply, Exception):
        raise reply
    fields, *outlook = reply
    try:
        return record_from_fields(job_id, fields_to_dict(fields), QueueOutlook.of(outlook))
    except ForeignJob:
        return None
