"""GET /v1/jobs/{id}/events: replay, live events, resuming, heartbeats, the end, the shutdown."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import anyio
import httpx2
import pytest
from http_harness import Api, FakeWorker, WireEvent, serving, until

from config.settings import Settings
from jobs.checkpoints import checkpoint_key
from jobs.events import Event
from jobs.types import Checkpoint, EventType, Usage
from server import sse
from server.schemas import JobEvent


def parse(lines: Iterator[str]) -> Iterator[WireEvent]:
    """Events of a stream, read by the rules of the HTML standard that we use."""
    fields: dict[str, str] = {}
    for line in lines:
        if not line:
            if "data" in fields:
                yield WireEvent(
                    fields.get("id", ""), fields.get("event", ""), json.loads(fields["data"])
                )
            fields = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(": ")
            fields[name] = value


@contextmanager
def watching(api: Api, job_id: str, **options: Any) -> Iterator[httpx2.Response]:
    with api.client.stream("GET", f"/v1/jobs/{job_id}/events", **options) as response:
        assert response.status_code == 200
        yield response


def watch(api: Api, job_id: str, **options: Any) -> list[WireEvent]:
    with watching(api, job_id, **options) as response:
        return list(parse(response.iter_lines()))


LIFE = ["job.queued", "job.started", *["job.progress"] * 4, "job.succeeded"]


def test_an_ended_job_replays_its_whole_life_and_the_stream_ends(
    api: Api, worker: FakeWorker
) -> None:
    job_id = api.submit()["id"]
    worker.run_one()
    events = watch(api, job_id)
    assert [event.type for event in events] == LIFE
    assert [event.data["type"] for event in events] == LIFE
    assert {event.data["job_id"] for event in events} == {job_id}
    steps = [e.data["progress"]["step"] for e in events if e.type == "job.progress"]
    assert steps == [1, 2, 3, 4]


def test_the_last_event_links_the_outputs_and_tells_no_blob_key(
    api: Api, worker: FakeWorker
) -> None:
    job_id = api.submit()["id"]
    worker.run_one(b"bytes")
    [output] = watch(api, job_id)[-1].data["outputs"]
    assert output["url"] == f"/v1/jobs/{job_id}/outputs/0"
    assert "key" not in output
    assert api.client.get(output["url"]).content == b"bytes"


def test_every_kind_of_event_is_as_described(api: Api, worker: FakeWorker) -> None:
    ids = [api.submit()["id"] for _ in range(3)]
    job = worker.claim()
    checkpoint = Checkpoint(checkpoint_key(job.id, job.execution_id, 2), 2, "0" * 64)
    assert worker.leases.record_checkpoint(job, checkpoint, Usage(steps=2))
    assert worker.leases.requeue(job, "drained", refund_attempt=True, usage=Usage(steps=2))
    assert api.job(job.id)["progress"]["step"] == 2
    job = worker.claim()
    assert worker.leases.restarted(job, "checkpoint_missing")
    worker.step(job, 1, preview=b"jpeg")
    worker.succeed(job)
    worker.fail(worker.claim())
    api.client.post(f"/v1/jobs/{ids[2]}/cancel")
    events = [event for job_id in ids for event in watch(api, job_id)]
    for event in events:
        assert JobEvent.model_validate(event.data).type == event.type
    assert {event.type for event in events} == set(EventType)


def test_the_stream_is_headed_for_proxies_and_browsers(api: Api) -> None:
    job_id = api.submit()["id"]
    with watching(api, job_id) as response:
        assert response.headers["Content-Type"].startswith("text/event-stream")
        assert response.headers["Cache-Control"] == "no-cache"
        assert response.headers["X-Accel-Buffering"] == "no"
        assert next(response.iter_lines()) == "retry: 1000"


def test_two_watchers_follow_the_same_job_live(api: Api, worker: FakeWorker) -> None:
    job_id = api.submit()["id"]
    seen: list[list[WireEvent]] = [[], []]

    def follow(n: int) -> None:
        with watching(api, job_id) as response:
            for event in parse(response.iter_lines()):
                seen[n].append(event)

    threads = [threading.Thread(target=follow, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    until(lambda: all(seen), "both watchers to have the first event")
    worker.run_one()
    for thread in threads:
        thread.join()
    assert [event.type for event in seen[0]] == LIFE
    assert seen[0] == seen[1]


def test_previews_come_through(api: Api, worker: FakeWorker) -> None:
    job_id = api.submit()["id"]
    job = worker.claim()
    worker.step(job, 1, preview=b"\xff\xd8jpeg")
    worker.succeed(job)
    [preview] = [e for e in watch(api, job_id) if e.type == "job.preview"]
    assert preview.data["preview"]["content_type"] == "image/jpeg"


@pytest.mark.parametrize("way", ["Last-Event-ID", "after"])
def test_resuming_at_every_cut_point_misses_nothing_and_repeats_nothing(
    api: Api, worker: FakeWorker, way: str
) -> None:
    job_id = api.submit()["id"]
    worker.run_one()
    whole = watch(api, job_id)
    for cut, last in enumerate(whole, start=1):
        headers, params = ({way: last.id}, {}) if way != "after" else ({}, {way: last.id})
        assert watch(api, job_id, headers=headers, params=params) == whole[cut:]


def test_a_watcher_cut_off_after_every_event_still_sees_a_live_job_exactly_once(
    api: Api, worker: FakeWorker
) -> None:
    job_id = api.submit()["id"]
    running = threading.Thread(target=worker.run_one)
    seen: list[WireEvent] = []
    while not seen or seen[-1].type != "job.succeeded":
        headers = {"Last-Event-ID": seen[-1].id} if seen else {}
        with watching(api, job_id, headers=headers) as response:
            seen.append(next(parse(response.iter_lines())))
        if len(seen) == 1:
            running.start()
    running.join()
    assert seen == watch(api, job_id)
    assert [event.type for event in seen] == LIFE


def test_an_event_id_that_is_none_is_refused(api: Api) -> None:
    job_id = api.submit()["id"]
    for bad in ("yesterday", "1-", "99999999999999999999-0", "-1"):
        response = api.client.get(f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": bad})
        assert response.status_code == 422
        assert response.json()["param"] == "Last-Event-ID"
    for bad in ("١٢-٣", f"{2**64 - 1}-{2**64 - 1}", "1" * 5000 + "-1"):
        response = api.client.get(f"/v1/jobs/{job_id}/events", params={"after": bad})
        assert response.status_code == 422
        assert response.json()["param"] == "after"


def test_the_largest_event_id_is_after_everything(api: Api, worker: FakeWorker) -> None:
    job_id = api.submit()["id"]
    worker.run_one()
    assert watch(api, job_id, params={"after": f"{2**64 - 2}-{2**64 - 2}"}) == []


def test_an_unknown_job_has_no_stream(api: Api) -> None:
    assert api.client.get("/v1/jobs/job_none/events").status_code == 404


def test_a_job_whose_event_log_has_expired_still_tells_its_end(
    api: Api, worker: FakeWorker, redis_client: Any
) -> None:
    job_id = api.submit()["id"]
    worker.run_one()
    assert redis_client.delete(f"denoised:ev:{job_id}") == 1
    [event] = watch(api, job_id)
    assert event.type == "job.succeeded"
    assert [output["url"] for output in event.data["outputs"]] == [f"/v1/jobs/{job_id}/outputs/0"]


def test_the_count_of_watchers_returns_to_zero_when_they_leave(api: Api) -> None:
    job_id = api.submit()["id"]
    with watching(api, job_id) as one, watching(api, job_id) as two:
        # A generator that is let go closes its connection.
        first, second = parse(one.iter_lines()), parse(two.iter_lines())
        assert next(first).type == next(second).type == "job.queued"
        assert api.watchers == 2
        assert "denoised_sse_watchers 2.0" in api.client.get("/metrics").text
    until(lambda: api.watchers == 0, "the watchers to be released")
    until(
        lambda: "denoised_sse_watchers 0.0" in api.client.get("/metrics").text,
        "the gauge to return to zero",
    )


def test_a_stopping_server_ends_open_streams_at_once_and_says_so(settings: Settings) -> None:
    with serving(settings) as api:
        job_id = api.submit()["id"]
        with watching(api, job_id) as response:
            lines = response.iter_lines()
            assert next(parse(lines)).type == "job.queued"
            # Far less than the grace time, or this read would run into the client's timeout.
            api.server.should_exit = True
            rest = list(lines)
    assert ": the server is stopping, reconnect" in rest
    assert not any(line.startswith("event") for line in rest)


async def _events(*events: Event, then_wait: bool = False) -> AsyncGenerator[Event, None]:
    for event in events:
        yield event
    if then_wait:
        await asyncio.Event().wait()


PROGRESS = Event("1-1", EventType.PROGRESS, {"job_id": "j", "text": "é\n"})


async def always() -> bool:
    return True


async def test_a_quiet_stream_beats_and_loses_no_event_by_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sse, "HEARTBEAT_SECONDS", 0.01)
    release = asyncio.Event()

    async def late() -> AsyncGenerator[Event, None]:
        await release.wait()
        yield PROGRESS

    chunks = []
    async for chunk in sse.event_stream(late(), stopping=asyncio.Event(), is_still_allowed=always):
        chunks.append(chunk)
        if len(chunks) == 4:
            release.set()
    assert chunks[1:4] == [b": keepalive\n\n"] * 3
    assert b"event: job.progress\n" in chunks[-1]


async def test_an_event_is_one_message_whatever_its_text_holds() -> None:
    message = sse.format_event(PROGRESS).decode()
    assert message.count("\n\n") == 1
    assert message.endswith("\n\n")
    [parsed] = parse(iter(message.split("\n")))
    assert parsed == WireEvent("1-1", "job.progress", PROGRESS.data)


async def test_a_stream_that_is_closed_early_closes_its_source() -> None:
    closed = asyncio.Event()

    async def source() -> AsyncGenerator[Event, None]:
        try:
            yield PROGRESS
            await asyncio.Event().wait()
        finally:
            closed.set()

    stream = sse.event_stream(source(), stopping=asyncio.Event(), is_still_allowed=always)
    async for chunk in stream:
        if b"progress" in chunk:
            break
    await stream.aclose()
    assert closed.is_set()


async def test_a_client_that_leaves_as_the_job_ends_leaves_no_error_behind() -> None:
    errors: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    waits, is_closed = asyncio.Event(), asyncio.Event()

    async def ends_when_cancelled() -> AsyncGenerator[Event, None]:
        try:
            yield PROGRESS
            waits.set()
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            is_closed.set()

    async def read() -> None:
        stream = sse.event_stream(
            ends_when_cancelled(), stopping=asyncio.Event(), is_still_allowed=always
        )
        async for _ in stream:
            pass

    async with anyio.create_task_group() as group:
        group.start_soon(read)
        await waits.wait()
        group.cancel_scope.cancel()
    assert is_closed.is_set()
    gc.collect()
    await asyncio.sleep(0)
    assert errors == []
