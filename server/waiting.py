"""`Prefer: wait=n` (RFC 7240): holding a submission's answer until its job has ended.

The wait ends early when the client goes away or the server stops, so that neither a closed laptop
nor a restart keeps a watcher for the whole minute.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine
from contextlib import aclosing
from typing import Any

from fastapi import Request

from server.services import Services
from server.tasks import end_tasks

MAX_WAIT_SECONDS = 60
_WAIT = re.compile(r"wait\s*=\s*\"?(\d{1,9})\"?")


def preferred_wait(headers: list[str]) -> int:
    """Seconds to wait, 0..60; what a Prefer header says otherwise is ignored, as it may be."""
    for header in headers:
        for preference in header.split(","):
            found = _WAIT.fullmatch(preference.split(";")[0].strip().lower())
            if found:
                return min(int(found[1]), MAX_WAIT_SECONDS)
    return 0


async def wait_for_end(request: Request, services: Services, job_id: str, seconds: float) -> None:
    """Returns when the job has ended, the time is over, the client is gone or the server stops."""
    await _first_of(
        _ended(services, job_id), services.stopping.wait(), _client_left(request), seconds=seconds
    )


async def _ended(services: Services, job_id: str) -> None:
    async with aclosing(services.hub.watch(job_id)) as events:
        async for event in events:
            if event.type.is_terminal:
                return


async def _client_left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _first_of(*waits: Coroutine[Any, Any, Any], seconds: float) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        # A task that failed (say, Redis went away) only ends the wait: the caller reads the record.
        await end_tasks(tasks)
