"""Following a job: nothing missed, nothing twice, whatever happens to the connection."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from jobs import events
from jobs.connections import connect_async
from jobs.errors import JobNotFound, StoreUnavailable
from jobs.events import Event, EventHub, parse_stream_id
from jobs.lease import LeaseClient
from jobs.store import JobStore
from jobs.types import (
    ClaimedJob,
    ErrorCode,
    EventType,
    JobFailure,
    NewJob,
    Outcome,
    Output,
    Progress,
    Stage,
    Status,
)

MODEL = "test-model"
MakeJob = Callable[..., NewJob]


@pytest.fixture
async def hub(redis: AsyncRedis) -> AsyncIterator[EventHub]:
    hub = EventHub(redis)
    yield hub
    await hub.close()


async def follow(hub: EventHub, job_id: str, after: str | None = None) -> list[Event]:
    return [event async for event in hub.watch(job_id, after=after)]


def run(worker: LeaseClient, steps: int = 30) -> ClaimedJob:
    """Takes the next job through its steps to success."""
    [job] = worker.claim([MODEL], 1)
    for step in range(1, steps + 1):
        worker.report([Progress(job, Stage.DENOISING, step, steps)])
    assert worker.finish(job, Outcome(Status.SUCCEEDED))
    return job


def kinds(found: list[Event]) -> list[str]:
    return [event.type.value for event in found]


async def test_live_and_replay_give_the_same_whole_story(
    hub: EventHub, store: JobStore, make_job: MakeJob, worker: LeaseClient
) -> None:
    record, _ = await store.submit(make_job())
    early = asyncio.create_task(follow(hub, record.id))
    running = asyncio.create_task(asyncio.to_thread(run, worker))
    middle: list[asyncio.Task[list[Event]]] = []
    while not running.done():
        middle.append(asyncio.create_task(follow(hub, record.id)))
        await asyncio.sleep(0.002)
    await running
    late = await follow(hub, record.id)
    assert kinds(late) == [
        "job.queued",
        "job.started",
        *["job.progress"] * 30,
        "job.succeeded",
    ]
    for watching in [early, *middle]:
        assert await watching == late
    assert hub.watchers == 0


@hypothesis_settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(cuts=st.lists(st.integers(0, 33), min_size=1, max_size=4))
def test_a_watcher_that_reconnects_anywhere_misses_and_repeats_nothing(
    redis_client: Redis,
    settings: object,
    make_job: MakeJob,
    make_worker: Callable[..., LeaseClient],
    cuts: list[int],
) -> None:
    async def scenario() -> None:
        client = connect_async(settings.redis_url)  # type: ignore[attr-defined]
        hub, store = EventHub(client), JobStore(client, settings)  # type: ignore[arg-type]
        record, _ = await store.submit(make_job())
        running = asyncio.create_task(asyncio.to_thread(run, make_worker()))
        found: list[Event] = []
        for cut in cuts:
            async with aclosing(hub.watch(record.id, after=last_id(found))) as watching:
                while len(found) < cut and (event := await anext(watching, None)) is not None:
                    found.append(event)
        found += await follow(hub, record.id, last_id(found))
        await running
        assert found == await follow(hub, record.id)
        await hub.close()
        await client.aclose()

    asyncio.run(scenario())


def last_id(found: list[Event]) -> str | None:
    return found[-1].id if found else None


async def test_events_carry_what_watchers_show(
    hub: EventHub,
    store: JobStore,
    make_job: MakeJob,
    worker: LeaseClient,
    output_of: Callable[[ClaimedJob], Output],
) -> None:
    record, _ = await store.submit(make_job())
    [job] = worker.claim([MODEL], 1)
    worker.report([Progress(job, Stage.DENOISING, 1, 4, eta_seconds=2.0, preview=b"jpeg")])
    worker.finish(job, Outcome(Status.SUCCEEDED, outputs=(output_of(job),)))
    found = await follow(hub, record.id)
    for event in found:
        assert event.data["type"] == event.type.value
        assert event.data["job_id"] == record.id
        assert {"status", "stage", "attempt", "created_at"} <= event.data.keys()
    queued, started, progress, preview, succeeded = (event.data for event in found)
    assert queued["status"] == "queued"
    assert (started["worker"], started["attempt"]) == ("worker-a", 1)
    assert progress["stage"] == "denoising"
    assert progress["progress"] == {
        "step": 1,
        "total_steps": 4,
        "percent": 25.0,
        "eta_seconds": 2.0,
    }
    assert preview["preview"] == {"content_type": "image/jpeg", "data": "anBlZw==", "step": 1}
    assert succeeded["outputs"] == [
        {"index": 0, **output_of(job).model_dump(mode="json", exclude={"key"})}
    ]


async def test_a_failure_says_why(
    hub: EventHub, store: JobStore, make_job: MakeJob, worker: LeaseClient
) -> None:
    record, _ = await store.submit(make_job())
    [job] = worker.claim([MODEL], 1)
    failure = JobFailure(code=ErrorCode.OUT_OF_MEMORY, message='too "large"')
    worker.finish(job, Outcome(Status.FAILED, failure=failure))
    found = await follow(hub, record.id)
    assert found[-1].type is EventType.FAILED
    assert found[-1].data["error"] == failure.model_dump(mode="json")


async def test_the_ending_survives_its_log(
    hub: EventHub,
    store: JobStore,
    redis_client: Redis,
    make_job: MakeJob,
    worker: LeaseClient,
    output_of: Callable[[ClaimedJob], Output],
) -> None:
    """The log goes ten minutes after the end, the record a day later."""
    record, _ = await store.submit(make_job())
    [job] = worker.claim([MODEL], 1)
    worker.finish(job, Outcome(Status.SUCCEEDED, outputs=(output_of(job),)))
    whole = await follow(hub, record.id)
    redis_client.delete(f"denoised:ev:{record.id}")
    assert await follow(hub, record.id) == whole[-1:]
    assert await follow(hub, record.id, whole[-2].id) == whole[-1:]
    assert await follow(hub, record.id, whole[-1].id) == []


async def test_a_watch_from_the_last_event_ends_at_once(
    hub: EventHub, store: JobStore, make_job: MakeJob, worker: LeaseClient
) -> None:
    record, _ = await store.submit(make_job())
    await store.cancel(record.id)
    whole = await follow(hub, record.id)
    assert kinds(whole) == ["job.queued", "job.cancelled"]
    assert await follow(hub, record.id, whole[-1].id) == []


async def test_a_log_longer_than_a_page_is_replayed_whole(
    hub: EventHub, store: JobStore, make_job: MakeJob, worker: LeaseClient
) -> None:
    record, _ = await store.submit(make_job())
    steps = 2 * events.REPLAY_PAGE - 20
    await asyncio.to_thread(run, worker, steps)
    assert len(await follow(hub, record.id)) == steps + 3


async def test_a_very_long_log_is_trimmed_from_its_beginning(
    hub: EventHub, store: JobStore, redis_client: Redis, make_job: MakeJob, worker: LeaseClient
) -> None:
    record, _ = await store.submit(make_job())
    await asyncio.to_thread(run, worker, 800)
    assert 256 <= redis_client.xlen(f"denoised:ev:{record.id}") < 400
    found = await follow(hub, record.id)
    assert found[-1].type is EventType.SUCCEEDED
    steps = [event.data["progress"]["step"] for event in found[:-1]]
    assert steps == list(range(steps[0], 801))


async def test_a_watcher_that_cannot_keep_up_reads_the_stream(
    hub: EventHub,
    store: JobStore,
    make_job: MakeJob,
    worker: LeaseClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(events, "MAILBOX", 4)
    moods = random.Random(1)
    record, _ = await store.submit(make_job())
    found: list[Event] = []
    [job] = await asyncio.to_thread(worker.claim, [MODEL], 1)
    async with asyncio.timeout(60), aclosing(hub.watch(record.id)) as watching:
        for step in range(200):
            update = Progress(job, Stage.DENOISING, step, 200)
            await asyncio.to_thread(worker.report, [update])
            # It falls behind, takes a few, which makes room behind what was dropped, and so on.
            takes = moods.choice([0, 0, 1, 1, 2, 3])
            while takes and len(found) < step + 3:
                found.append(await anext(watching))
                takes -= 1
        await asyncio.to_thread(worker.finish, job, Outcome(Status.SUCCEEDED))
        found += [event async for event in watching]
    assert found == await follow(hub, record.id)
    assert len(found) == 203


async def test_a_lost_subscription_is_made_up_from_the_stream(
    hub: EventHub, store: JobStore, redis_client: Redis, make_job: MakeJob, worker: LeaseClient
) -> None:
    record, _ = await store.submit(make_job())
    watching = asyncio.create_task(follow(hub, record.id))
    [job] = await asyncio.to_thread(worker.claim, [MODEL], 1)
    for step in range(1, 11):
        await asyncio.to_thread(worker.report, [Progress(job, Stage.DENOISING, step, 10)])
        if step % 3 == 0:
            redis_client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
    await asyncio.to_thread(worker.finish, job, Outcome(Status.SUCCEEDED))
    found = await asyncio.wait_for(watching, 20)
    assert [e.data["progress"]["step"] for e in found if e.type is EventType.PROGRESS] == list(
        range(1, 11)
    )
    assert found == await follow(hub, record.id)


async def test_a_silent_subscription_is_noticed(
    hub: EventHub,
    store: JobStore,
    make_job: MakeJob,
    worker: LeaseClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Messages that vanish without an error, as behind a broken middlebox."""
    monkeypatch.setattr(events, "RECHECK_SECONDS", 0.2)
    record, _ = await store.submit(make_job())
    async with aclosing(hub.watch(record.id)) as watching:
        found = [await anext(watching)]
        monkeypatch.setattr(events._Watcher, "deliver", lambda watcher, message: None)
        await asyncio.to_thread(run, worker, 5)
        found += [event async for event in watching]
    assert found == await follow(hub, record.id)


async def test_unknown_jobs_and_malformed_ids_are_refused(
    hub: EventHub, store: JobStore, make_job: MakeJob
) -> None:
    with pytest.raises(JobNotFound):
        await follow(hub, "job_unknown")
    record, _ = await store.submit(make_job())
    for bad in ("x", "1", "1-", "-1", "1-x", "+", "(1-0", "١-٠", f"{2**64}-0"):
        with pytest.raises(ValueError, match="is not an event id"):
            await follow(hub, record.id, bad)
    assert hub.watchers == 0


async def test_a_watch_of_a_deleted_job_ends(
    hub: EventHub,
    store: JobStore,
    redis_client: Redis,
    make_job: MakeJob,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(events, "RECHECK_SECONDS", 0.2)
    record, _ = await store.submit(make_job())
    async with aclosing(hub.watch(record.id)) as watching:
        await anext(watching)
        redis_client.delete(f"rq:job:{record.id}", f"denoised:ev:{record.id}")
        assert await anext(watching, None) is None


async def test_closing_the_hub_ends_every_watch(
    hub: EventHub, store: JobStore, make_job: MakeJob
) -> None:
    ids = [(await store.submit(make_job()))[0].id for _ in range(3)]
    watching = [asyncio.create_task(follow(hub, job_id)) for job_id in [*ids, *ids]]
    while hub.watchers < 6:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    await hub.close()
    for found in await asyncio.wait_for(asyncio.gather(*watching), 2):
        assert kinds(found) == ["job.queued"]
    assert hub.watchers == 0
    assert await follow(hub, ids[0]) == []


async def test_many_watchers_share_one_subscriber(
    hub: EventHub, store: JobStore, redis_client: Redis, make_job: MakeJob
) -> None:
    ids = [(await store.submit(make_job()))[0].id for _ in range(20)]
    watching = [asyncio.create_task(follow(hub, job_id)) for job_id in ids * 3]
    while hub.watchers < 60:
        await asyncio.sleep(0.01)
    assert len(redis_client.client_list(_type="pubsub")) == 1
    for job_id in ids:
        await store.cancel(job_id)
    for found in await asyncio.gather(*watching):
        assert kinds(found) == ["job.queued", "job.cancelled"]
    while redis_client.pubsub_channels():
        await asyncio.sleep(0.01)


async def test_without_redis_a_watch_says_so() -> None:
    client = connect_async("unix:///nowhere/redis.sock")
    hub = EventHub(client)
    events_before = events.RECHECK_SECONDS
    events.RECHECK_SECONDS = 0.2
    try:
        with pytest.raises(StoreUnavailable):
            await follow(hub, "job_x")
    finally:
        events.RECHECK_SECONDS = events_before
        await hub.close()
        await client.aclose()


def test_stream_ids_are_ordered_as_numbers() -> None:
    assert parse_stream_id("10-2") > parse_stream_id("9-11")
    assert parse_stream_id("10-10") > parse_stream_id("10-9")
