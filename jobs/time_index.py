"""Places in a listing, newest first: a cursor is the last entry looked at, time and id.

What arrives later is newer and never shifts a page. The indexes are sorted sets of ids by the time,
in microseconds since 1970, at which they came.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis


@dataclass(frozen=True)
class Cursor:
    """A place in a listing: what comes after is older than this entry."""

    time_us: int
    id: str

    def __str__(self) -> str:
        return f"{self.time_us}.{self.id}"

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Reads a cursor back. Raises `ValueError` for anything else."""
        time, dot, id_ = text.partition(".")
        if not (dot and id_ and time.isascii() and time.isdecimal() and len(time) <= 17):
            raise ValueError(f"{text[:64]!r} is not a cursor of this listing")
        return cls(int(time), id_)


async def older_than(redis: Redis, index: str, place: Cursor | None, count: int) -> list[Cursor]:
    """About `count` entries of `index` after `place`; of equal times the larger id first.

    Fewer than `count` say that there are no more.
    """
    if place is None:
        return _entries(await _rows(redis, index, "+inf", "-inf", count))
    # Several entries of one microsecond are rare, so all of them are read again.
    same = _entries(await _rows(redis, index, place.time_us, place.time_us, None))
    older = _entries(await _rows(redis, index, f"({place.time_us}", "-inf", count))
    return [entry for entry in same if entry.id < place.id] + older


async def _rows(
    redis: Redis, index: str, highest: int | str, lowest: int | str, count: int | None
) -> Any:
    return await redis.zrevrangebyscore(
        index,
        highest,
        lowest,
        start=None if count is None else 0,
        num=count,
        withscores=True,
    )


def _entries(rows: Sequence[tuple[bytes, float]]) -> list[Cursor]:
    return [Cursor(int(score), member.decode()) for member, score in rows]
