"""Pages of jobs: newest first, complete, without repeats, while jobs arrive."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from redis import Redis

from jobs import listing
from jobs.lease import LeaseClient
from jobs.store import JobStore
from jobs.types import NewJob, Outcome, Status

MODEL = "test-model"
MakeJob = Callable[..., NewJob]


async def walk(store: JobStore, **filters: object) -> list[str]:
    found: list[str] = []
    cursor = None
    while True:
        page, cursor = await store.list(cursor=cursor, **filters)  # type: ignore[arg-type]
        found += [record.id for record in page]
        if cursor is None:
            return found


async def test_pages_stay_aligned_while_jobs_arrive(store: JobStore, make_job: MakeJob) -> None:
    ids = [(await store.submit(make_job()))[0].id for _ in range(7)]
    found: list[str] = []
    cursor = None
    for _ in range(4):
        page, cursor = await store.list(limit=2, cursor=cursor)
        found += [record.id for record in page]
        await store.submit(make_job())
    assert found == ids[::-1]
    assert cursor is None


async def test_jobs_of_the_same_microsecond_are_each_listed_once(
    store: JobStore, redis_client: Redis, make_job: MakeJob
) -> None:
    ids = [(await store.submit(make_job()))[0].id for _ in range(9)]
    redis_client.zadd("denoised:jobs", dict.fromkeys(ids, 1_700_000_000_000_000))
    for limit in (1, 2, 4, 20):
        assert await walk(store, limit=limit) == sorted(ids, reverse=True)


async def test_filters_by_status_and_model(
    store: JobStore, make_job: MakeJob, worker: LeaseClient
) -> None:
    for _ in range(3):
        await store.submit(make_job())
    other, _ = await store.submit(make_job(model="other-model"))
    running, ended = worker.claim([MODEL], 2)
    worker.finish(ended, Outcome(Status.SUCCEEDED))
    assert await walk(store, status=Status.RUNNING) == [running.id]
    assert await walk(store, status=Status.SUCCEEDED, limit=1) == [ended.id]
    assert await walk(store, model="other-model") == [other.id]
    assert await walk(store, model="other-model", status=Status.RUNNING) == []
    assert len(await walk(store, status=Status.QUEUED, limit=1)) == 2


async def test_a_long_search_hands_out_a_cursor_instead_of_going_on(
    store: JobStore, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "CHUNK", 4)
    monkeypatch.setattr(listing, "MOST_CHUNKS", 2)
    rare, _ = await store.submit(make_job(model="other-model"))
    for _ in range(20):
        await store.submit(make_job())
    page, cursor = await store.list(model="other-model")
    assert page == []
    assert cursor is not None
    assert await walk(store, model="other-model") == [rare.id]


async def test_a_deleted_job_does_not_break_the_page_after_it(
    store: JobStore, make_job: MakeJob
) -> None:
    ids = [(await store.submit(make_job()))[0].id for _ in range(4)]
    page, cursor = await store.list(limit=2)
    await store.cancel(ids[2])
    await store.delete(ids[2])
    rest, end = await store.list(limit=2, cursor=cursor)
    assert [record.id for record in page + rest] == ids[::-1]
    assert end is None or (await store.list(cursor=end)) == ([], None)


@pytest.mark.parametrize("cursor", ["", "x", "12", "12.", ".id", "-1.id", "9" * 40 + ".id", "٣.a"])
async def test_a_malformed_cursor_is_refused(store: JobStore, cursor: str) -> None:
    with pytest.raises(ValueError, match="not a cursor"):
        await store.list(cursor=cursor)


async def test_an_empty_page_size_is_refused(store: JobStore) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        await store.list(limit=0)
