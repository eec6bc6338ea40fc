"""Server-sent events of one job, from the event hub to the wire.

Replays what the client missed, then follows the job live. A comment goes out when nothing happened
for a while, so that proxies keep the connection; the stream ends after the terminal event, when its
API key has been revoked, or at once when the server stops, in which case the client resumes
elsewhere with `Last-Event-ID`.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import anyio
from fastapi.responses import StreamingResponse
from fastapi.sse import format_sse_event
from starlette.types import Send

from jobs.errors import JobNotFound, StoreUnavailable
from jobs.events import Event
from jobs.types import EventType
from server.metrics import SSE_WATCHERS
from server.tasks import end_tasks
from server.views import output_url

HEARTBEAT_SECONDS = 15.0
RETRY_MILLISECONDS = 1000
"""How long a client waits before it reconnects, sent as the `retry:` hint."""


class EventStreamResponse(StreamingResponse):
    """A stream of events that is finalised as soon as the client has gone."""

    media_type = "text/event-stream"

    def __init__(self, stream: AsyncGenerator[bytes, None]) -> None:
        # The second header keeps nginx from collecting events before it passes them on.
        super().__init__(stream, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._stream = stream

    async def stream_response(self, send: Send) -> None:
        SSE_WATCHERS.inc()
        try:
            await super().stream_response(send)
        finally:
            SSE_WATCHERS.dec()
            # The task is being cancelled when the client left; closing must still run to its end.
            with anyio.CancelScope(shield=True):
                await self._stream.aclose()


async def event_stream(
    events: AsyncGenerator[Event, None],
    *,
    stopping: asyncio.Event,
    is_still_allowed: Callable[[], Awaitable[bool]],
    root_path: str = "",
) -> AsyncGenerator[bytes, None]:
    """The wire form of `events`, which it closes at its end.

    `is_still_allowed` is asked every `HEARTBEAT_SECONDS`, before the first event that comes later,
    or the next heartbeat; when it says no, the stream ends.
    """
    yield format_sse_event(retry=RETRY_MILLISECONDS)
    asked_at = time.monotonic()
    try:
        async with aclosing(_with_heartbeats(events, stopping)) as beats:
            async for event in beats:
                if time.monotonic() >= asked_at + HEARTBEAT_SECONDS:
                    if not await is_still_allowed():
                        yield format_sse_event(comment="the API key is no longer good")
                        return
                    asked_at = time.monotonic()
                if event is None:
                    yield format_sse_event(comment="keepalive")
                else:
                    yield format_event(event, root_path)
    except (JobNotFound, StoreUnavailable) as error:
        # Looked up a moment ago; it is too late for a status, the reconnect will get one.
        yield format_sse_event(comment=f"{type(error).__name__}, reconnect")
        return
    if stopping.is_set():
        yield format_sse_event(comment="the server is stopping, reconnect")


async def _with_heartbeats(
    events: AsyncGenerator[Event, None], stopping: asyncio.Event
) -> AsyncGenerator[Event | None, None]:
    """The events, and None after each quiet interval; ends early when the server stops."""
    stop = asyncio.ensure_future(stopping.wait())
    upcoming: asyncio.Future[Event] | None = None
    try:
        while not stop.done():
            if upcoming is None:
                upcoming = asyncio.ensure_future(_next(events))
            # The pending event outlives a quiet interval: cancelling it would end the generator.
            either: set[asyncio.Future[Any]] = {upcoming, stop}
            await asyncio.wait(
                either, timeout=HEARTBEAT_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            if upcoming.done():
                try:
                    event = upcoming.result()
                except StopAsyncIteration:
                    return
                upcoming = None
                yield event
            elif not stop.done():
                yield None
    finally:
        # Where the client's leaving cancels this task, it cancels every unshielded wait of it.
        with anyio.CancelScope(shield=True):
            await end_tasks(task for task in (stop, upcoming) if task is not None)
            await events.aclose()


async def _next(events: AsyncGenerator[Event, None]) -> Event:
    return await anext(events)


def format_event(event: Event, root_path: str = "") -> bytes:
    """One event on the wire; outputs get the URL they are served at."""
    data = event.data
    if event.type is EventType.SUCCEEDED:
        data = _with_urls(data, root_path)
    return format_sse_event(
        data_str=json.dumps(data, ensure_ascii=False, separators=(",", ":")),
        event=event.type,
        id=event.id,
    )


def _with_urls(data: dict[str, Any], root_path: str) -> dict[str, Any]:
    job_id = data["job_id"]
    outputs = [
        {**output, "url": output_url(job_id, output["index"], root_path)}
        for output in data["outputs"]
    ]
    return {**data, "outputs": outputs}
