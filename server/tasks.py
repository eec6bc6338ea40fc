"""Ending tasks for certain."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

INSIST_SECONDS = 0.05


async def end_tasks(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Cancels the tasks and returns when all have ended; what they raised is dropped.

    Cancelling once is not enough: `asyncio.wait_for` in Python 3.11, by which redis-py writes to
    its socket, swallows a cancellation that arrives together with its result.
    """
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        done, pending = await asyncio.wait(pending, timeout=INSIST_SECONDS)
        for task in done:
            if not task.cancelled():
                task.exception()
