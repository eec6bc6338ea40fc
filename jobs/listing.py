"""Pages of jobs, newest first, that stay aligned while jobs arrive and go.

The index holds every job's submission time. A cursor is the last entry looked at, time and id, so
what arrives later is newer and never shifts a page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from jobs import keys, scripts
from jobs.errors import ForeignJob
from jobs.rq_record import fields_to_dict, record_from_fields
from jobs.types import JobRecord, Status

CHUNK = 256
MOST_CHUNKS = 8
"""A filtered page looks at no more than their product of jobs before it hands out a cursor."""

FEWEST_READ = 16
"""Records fetched in one round trip, at least."""


@dataclass(frozen=True)
class Cursor:
    """A place in the listing: what comes after is older than this entry."""

    submitted_us: int
    job_id: str

    def __str__(self) -> str:
        return f"{self.submitted_us}.{self.job_id}"

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Reads a cursor back. Raises `ValueError` for anything else."""
        time, dot, job_id = text.partition(".")
        if not (dot and job_id and time.isascii() and time.isdecimal() and len(time) <= 17):
            raise ValueError(f"{text[:64]!r} is not a cursor of this listing")
        return cls(int(time), job_id)


async def page(
    redis: Redis, *, status: Status | None, model: str | None, limit: int, cursor: str | None
) -> tuple[list[JobRecord], str | None]:
    """Up to `limit` jobs after `cursor`, and the next cursor, None at the end.

    Raises `ValueError` for a malformed cursor or a limit below 1.
    """
    if limit < 1:
        raise ValueError(f"limit is {limit}; it must be at least 1")
    place = Cursor.parse(cursor) if cursor is not None else None
    found: list[JobRecord] = []
    for _ in range(MOST_CHUNKS):
        chunk = await _older_than(redis, place)
        step = max(limit, FEWEST_READ)
        for start in range(0, len(chunk), step):
            part = chunk[start : start + step]
            for entry, record in zip(part, await _records(redis, part), strict=True):
                place = entry
                if record is None or not _matches(record, status, model):
                    continue
                found.append(record)
                if len(found) == limit:
                    return found, str(entry)
        if len(chunk) < CHUNK:
            return found, None
    return found, str(place)


def _matches(record: JobRecord, status: Status | None, model: str | None) -> bool:
    return (status is None or record.status is status) and (model is None or record.model == model)


async def _older_than(redis: Redis, place: Cursor | None) -> list[Cursor]:
    """The next entries of the index, newest first; of equal times the larger id first."""
    if place is None:
        return _entries(await _rows(redis, "+inf", "-inf", CHUNK))
    # Several jobs of one microsecond are rare, so all of them are read again.
    same = _entries(await _rows(redis, place.submitted_us, place.submitted_us, None))
    older = _entries(await _rows(redis, f"({place.submitted_us}", "-inf", CHUNK))
    return [entry for entry in same if entry.job_id < place.job_id] + older


async def _rows(redis: Redis, highest: int | str, lowest: int | str, count: int | None) -> Any:
    return await redis.zrevrangebyscore(
        keys.INDEX,
        highest,
        lowest,
        start=None if count is None else 0,
        num=count,
        withscores=True,
    )


def _entries(rows: Sequence[tuple[bytes, float]]) -> list[Cursor]:
    return [Cursor(int(score), member.decode()) for member, score in rows]


async def _records(redis: Redis, entries: Sequence[Cursor]) -> list[JobRecord | None]:
    """Records of several jobs in one round trip; None for one that has gone."""
    replies = await scripts.run_many_async(
        redis, scripts.READ, [[entry.job_id] for entry in entries]
    )
    return [_record(entry.job_id, reply) for entry, reply in zip(entries, replies, strict=True)]


def _record(job_id: str, reply: Any) -> JobRecord | None:
    if isinstance(reply, Exception):
        raise reply
    fields, position = reply
    try:
        return record_from_fields(job_id, fields_to_dict(fields), max(position, 0))
    except ForeignJob:
        return None
