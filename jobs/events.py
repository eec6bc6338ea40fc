"""Live events of jobs for many watchers: pub/sub for speed, the job's stream for truth.

One pub/sub connection per process carries the channels of all watched jobs. A watcher subscribes,
replays the stream after its last id, then follows live, dropping what the replay already gave.
Whatever pub/sub may lose (a reconnect, a full mailbox, a silent connection) is fetched from the
stream again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

from redis import exceptions as redis_errors
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection

from jobs import keys
from jobs.errors import UNREACHABLE, JobNotFound, StoreUnavailable
from jobs.event_log import (
    ENDING_FIELDS,
    Event,
    decode_event,
    parse_stream_id,
    remembered_ending,
)

__all__ = ["Event", "EventHub", "parse_stream_id"]

MAILBOX = 512
"""Live events kept for a slow watcher; past that it reads the stream instead."""

REPLAY_PAGE = 128
"""Stream entries fetched at a time."""

RECHECK_SECONDS = 5.0
"""A watcher that hears nothing for this long looks at the stream itself."""

BROKEN: tuple[type[Exception], ...] = (*UNREACHABLE, OSError)
"""What a broken pub/sub connection raises."""

RECONNECT_SECONDS = 0.1
"""Pause between attempts to get a connection back."""


@dataclass(eq=False)
class _Watcher:
    """A mailbox. `gap` says that the stream may hold events that the mailbox does not."""

    mailbox: asyncio.Queue[bytes] = field(default_factory=lambda: asyncio.Queue(MAILBOX))
    gap: bool = False

    def deliver(self, message: bytes) -> None:
        # After a gap nothing may be taken until the stream was read: it would pass what is missing.
        if self.gap:
            return
        if self.mailbox.full():
            self.gap = True
        else:
            self.mailbox.put_nowait(message)

    def look_again(self) -> None:
        self.gap = True
        if self.mailbox.empty():
            self.mailbox.put_nowait(b"")


@dataclass(eq=False)
class _Channel:
    """The watchers of one job, and whether Redis has confirmed the subscription."""

    watchers: set[_Watcher] = field(default_factory=set)
    confirmed: asyncio.Event = field(default_factory=asyncio.Event)


class EventHub:
    """Fan-out of job events to any number of watchers in this process.

    `redis` (from `jobs.connections.connect_async`) is shared for replays; the hub takes one more
    connection of its pool for pub/sub when the first watcher comes. It speaks the protocol on it
    directly: redis-py's PubSub reconnects by itself, which hides lost messages, and not safely
    while another task writes. Call `close` before closing `redis`.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._channels: dict[str, _Channel] = {}
        self._lock = asyncio.Lock()
        self._connection: AbstractConnection | None = None
        self._reader: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def watchers(self) -> int:
        """How many watchers are following a job now."""
        return sum(len(channel.watchers) for channel in self._channels.values())

    async def watch(self, job_id: str, *, after: str | None = None) -> AsyncGenerator[Event, None]:
        """Yields the job's events after stream id `after` (all when None), ends after the last.

        Goes on through Redis restarts. Ends without a terminal event only when the hub closes, the
        job is deleted, or `after` already was the terminal event. Entries trimmed off a very long
        log are skipped. Close it (`aclose`) when leaving early.

        Raises `ValueError` for a malformed `after`, `JobNotFound`, and `StoreUnavailable` when
        Redis is away at the start.
        """
        last = after or "0-0"
        parse_stream_id(last)
        name, watcher, started = keys.events(job_id), _Watcher(), False
        try:
            while not self._closed:
                try:
                    await self._join(name, watcher)
                    watcher.gap = False
                    page, ending, known = await self._replay(job_id, last)
                except UNREACHABLE as error:
                    if not started:
                        raise StoreUnavailable(f"Redis cannot be reached: {error}") from error
                    await asyncio.sleep(RECONNECT_SECONDS)
                    continue
                if not known:
                    if not started:
                        raise JobNotFound(job_id)
                    return
                started = True
                for event in page:
                    last = event.id
                    yield event
                    if event.type.is_terminal:
                        return
                if ending is not None:
                    if parse_stream_id(ending.id) > parse_stream_id(last):
                        yield ending
                    return
                if len(page) == REPLAY_PAGE:
                    continue
                while (message := await self._next(watcher)) is not None:
                    entry_id, _, data = message.partition(b" ")
                    if parse_stream_id(entry_id.decode()) <= parse_stream_id(last):
                        continue
                    last = entry_id.decode()
                    event = decode_event(last, data)
                    yield event
                    if event.type.is_terminal:
                        return
        finally:
            await self._leave(name, watcher)

    async def close(self) -> None:
        """Ends every watch at once and gives the pub/sub connection back."""
        self._closed = True
        for channel in self._channels.values():
            channel.confirmed.set()
            for watcher in channel.watchers:
                watcher.look_again()
        if self._reader is not None:
            self._reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reader
        async with self._lock:
            await self._disconnect()

    async def _next(self, watcher: _Watcher) -> bytes | None:
        """The next live message; None when it is time to look at the stream."""
        if watcher.mailbox.empty():
            if watcher.gap or self._closed:
                return None
            # Not wait_for: in Python 3.11 it can swallow a cancellation.
            try:
                async with asyncio.timeout(RECHECK_SECONDS):
                    message = await watcher.mailbox.get()
            except TimeoutError:
                return None
        else:
            message = watcher.mailbox.get_nowait()
        return message or None

    async def _replay(self, job_id: str, last: str) -> tuple[list[Event], Event | None, bool]:
        """One page of the log, the ending if the log no longer has it, whether there is a job."""
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.xrange(keys.events(job_id), f"({last}", "+", count=REPLAY_PAGE)
        pipeline.hmget(keys.job(job_id), ENDING_FIELDS)
        entries, values = await pipeline.execute()
        page = [decode_event(entry_id.decode(), entry[b"data"]) for entry_id, entry in entries]
        fields = dict(zip(ENDING_FIELDS, values, strict=True))
        ending = None
        if len(page) < REPLAY_PAGE and fields["final_event"]:
            ending = remembered_ending(job_id, fields)
        return page, ending, fields["status"] is not None

    async def _join(self, name: str, watcher: _Watcher) -> None:
        """Returns once the job's channel is confirmed on a live connection."""
        async with self._lock:
            channel = self._channels.get(name)
            if channel is None:
                channel = self._channels[name] = _Channel()
                await self._send("SUBSCRIBE", name)
            channel.watchers.add(watcher)
            if self._reader is None or self._reader.done():
                self._reader = asyncio.create_task(self._read())
        try:
            async with asyncio.timeout(RECHECK_SECONDS):
                await channel.confirmed.wait()
        except TimeoutError:
            raise redis_errors.TimeoutError("the subscription is not confirmed") from None

    async def _leave(self, name: str, watcher: _Watcher) -> None:
        async with self._lock:
            channel = self._channels.get(name)
            if channel is None:
                return
            channel.watchers.discard(watcher)
            if not channel.watchers:
                del self._channels[name]
                await self._send("UNSUBSCRIBE", name)

    async def _send(self, command: str, *names: str) -> None:
        """Writes while the reader reads; a connection that breaks is the reader's to replace."""
        # A dead connection must not be written to: redis-py would open it again behind our back.
        if self._connection is not None and self._connection.is_connected:
            with contextlib.suppress(*BROKEN):
                await self._connection.send_command(command, *names)

    async def _read(self) -> None:
        """Delivers messages while there are watchers; replaces a connection that breaks."""
        while self._channels and not self._closed:
            try:
                connection = await self._connect()
                while not self._closed:
                    # Closing is left to `_disconnect`, under the lock that writers hold.
                    message = await connection.read_response(
                        timeout=RECHECK_SECONDS, disconnect_on_error=False
                    )
                    if message is not None:
                        self._deliver(*message)
            except BROKEN:
                async with self._lock:
                    await self._disconnect()
                    for channel in self._channels.values():
                        channel.confirmed.clear()
                        for watcher in channel.watchers:
                            watcher.look_again()
                await asyncio.sleep(RECONNECT_SECONDS)

    def _deliver(self, kind: bytes, name: bytes, content: bytes | int) -> None:
        channel = self._channels.get(name.decode())
        if channel is None:
            return
        if kind == b"subscribe":
            channel.confirmed.set()
            for watcher in channel.watchers:
                watcher.look_again()
        elif isinstance(content, bytes):
            for watcher in channel.watchers:
                watcher.deliver(content)

    async def _connect(self) -> AbstractConnection:
        async with self._lock:
            await self._disconnect()
            pool: Any = self._redis.connection_pool
            connection: AbstractConnection = await pool.get_connection()
            self._connection = connection
            await self._send("SUBSCRIBE", *self._channels)
            return connection

    async def _disconnect(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            with contextlib.suppress(*BROKEN):
                await connection.disconnect()
            await self._redis.connection_pool.release(connection)
