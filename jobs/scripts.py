"""The Lua scripts, each one change of state, run by digest and loaded when Redis forgot them.

Sources lie in `jobs/scripts/*.lua`; `prelude.lua` goes in front of each. Calls are batched into one
pipeline where several go out together; each is atomic by itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, cast

from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.exceptions import NoScriptError

Argument = str | bytes | int | float
"""What Redis takes as a script argument."""


@dataclass(frozen=True)
class Script:
    """One script: its text and the SHA-1 digest Redis knows it by."""

    name: str
    source: str
    sha: str


def _load(name: str) -> Script:
    folder = files("jobs") / "scripts"
    source = f"{(folder / 'prelude.lua').read_text()}\n{(folder / f'{name}.lua').read_text()}"
    return Script(name, source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


SUBMIT = _load("submit")
CLAIM = _load("claim")
PROGRESS = _load("progress")
CHECKPOINT = _load("checkpoint")
RESTART = _load("restart")
FINISH = _load("finish")
REQUEUE = _load("requeue")
CANCEL = _load("cancel")
DELETE = _load("delete")
READ = _load("read")
REAP = _load("reap")
WORKER_DIED = _load("worker_died")
EXPIRE = _load("expire")
STATS = _load("stats")
WAITING = _load("waiting")
LOADING = _load("loading")
FILE_PUT = _load("file_put")
FILE_TOUCH = _load("file_touch")
FILE_WITHDRAW = _load("file_withdraw")
PRUNE = _load("prune")


def run(redis: Redis, script: Script, args: Sequence[Argument]) -> Any:
    """Runs one script and returns Redis' reply, bulk strings as bytes."""
    try:
        return redis.evalsha(script.sha, 0, *cast("Sequence[str]", args))
    except NoScriptError:
        return redis.eval(script.source, 0, *cast("Sequence[str]", args))


async def run_async(redis: AsyncRedis, script: Script, args: Sequence[Argument]) -> Any:
    """`run` for the asyncio client."""
    try:
        return await cast("Any", redis.evalsha(script.sha, 0, *cast("Sequence[str]", args)))
    except NoScriptError:
        return await cast("Any", redis.eval(script.source, 0, *cast("Sequence[str]", args)))


def run_many(redis: Redis, script: Script, calls: Sequence[Sequence[Argument]]) -> list[Any]:
    """Runs one script with several argument lists in one round trip.

    Replies come in order; a failed call leaves its exception in its place.
    """
    pipeline = redis.pipeline(transaction=False)
    for args in calls:
        pipeline.evalsha(script.sha, 0, *cast("Sequence[str]", args))
    replies = pipeline.execute(raise_on_error=False)
    missing = [i for i, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
    if missing:
        redis.script_load(script.source)
        again = run_many(redis, script, [calls[i] for i in missing])
        for i, reply in zip(missing, again, strict=True):
            replies[i] = reply
    return replies


async def run_many_async(
    redis: AsyncRedis, script: Script, calls: Sequence[Sequence[Argument]]
) -> list[Any]:
    """`run_many` for the asyncio client."""
    pipeline = redis.pipeline(transaction=False)
    for args in calls:
        pipeline.evalsha(script.sha, 0, *cast("Sequence[str]", args))
    replies = await pipeline.execute(raise_on_error=False)
    missing = [i for i, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
    if missing:
        await redis.script_load(script.source)
        again = await run_many_async(redis, script, [calls[i] for i in missing])
        for i, reply in zip(missing, again, strict=True):
            replies[i] = reply
    return replies
