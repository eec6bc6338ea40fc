"""Many submits in few round trips.

While one pipeline of submit scripts is on its way to Redis, the next one gathers; there is no
timer, so a lone submit goes out at once. Each script in it stands or falls by itself, and each is
told apart by its job id when a broken connection makes the client send it twice.
"""

from __future__ import annotations

import asyncio
from typing import Any

from redis.asyncio import Redis

from jobs import scripts
from jobs.errors import StoreUnavailable, is_away

LARGEST_BATCH = 128


class SubmitBatch:
    """Sends submit scripts for any number of concurrent callers over one connection."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._waiting: list[tuple[list[scripts.Argument], asyncio.Future[Any]]] = []
        self._sender: asyncio.Task[None] | None = None

    async def submit(self, args: list[scripts.Argument]) -> Any:
        """The script's reply. Raises what Redis raised, or `StoreUnavailable`."""
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((args, reply))
        if self._sender is None or self._sender.done():
            self._sender = asyncio.create_task(self._send())
        return await reply

    async def _send(self) -> None:
        while self._waiting:
            batch = self._waiting[:LARGEST_BATCH]
            del self._waiting[:LARGEST_BATCH]
            calls = [args for args, _ in batch]
            replies: list[Any]
            try:
                replies = await scripts.run_many_async(self._redis, scripts.SUBMIT, calls)
            except Exception as error:
                # Handed on: each caller raises it.
                replies = [error] * len(batch)
            for (_, future), reply in zip(batch, replies, strict=True):
                if future.done():
                    continue
                if isinstance(reply, Exception) and is_away(reply):
                    reply = StoreUnavailable(f"Redis cannot be reached: {reply}")
                if isinstance(reply, Exception):
                    future.set_exception(reply)
                else:
                    future.set_result(reply)
