"""Real worker processes over a real Redis, a keeper, and a store to submit and look with."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from engine_harness import claimed
from redis.asyncio import Redis as AsyncRedis
from worker_script import work

from config.settings import Settings
from jobs.blobs import FileBlobStore
from jobs.connections import connect, connect_async
from jobs.errors import StoreUnavailable
from jobs.events import EventHub
from jobs.keeper import Keeper
from jobs.store import JobStore
from jobs.types import JobRecord, NewJob, Priority
from jobs.worker_registry import WorkerInfo, list_workers

PATIENCE_SECONDS = 60.0

# Forked from a server that has the imports behind it: a worker starts in milliseconds.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["torch", "workers.process"])


class WorkerProcess:
    """A worker in a process of its own; `exit_status` waits for its end."""

    def __init__(self, settings: Settings, *models: str, step_seconds: float = 0.02) -> None:
        self.process = PROCESSES.Process(
            target=work, args=(settings, step_seconds, models or ("fake",))
        )
        self.process.start()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def send(self, signum: signal.Signals) -> None:
        os.kill(self.pid, signum)

    async def exit_status(self) -> int:
        await asyncio.to_thread(self.process.join, PATIENCE_SECONDS)
        assert self.process.exitcode is not None
        return self.process.exitcode


class Station:
    """Starts workers, submits jobs, waits for what becomes of them."""

    def __init__(self, settings: Settings, redis: AsyncRedis, hub: EventHub) -> None:
        self.settings = settings
        self.redis = redis
        self.store = JobStore(redis, settings)
        self._hub = hub
        self._workers: list[WorkerProcess] = []

    def start(self, *models: str, step_seconds: float = 0.02, **changes: Any) -> WorkerProcess:
        settings = self.settings.model_copy(update=changes)
        self._workers.append(WorkerProcess(settings, *models, step_seconds=step_seconds))
        return self._workers[-1]

    def stop_all(self) -> None:
        for worker in self._workers:
            worker.process.kill()
            worker.process.join()
            worker.process.close()

    async def submit(
        self,
        prompt: str = "a word",
        *,
        model: str = "fake",
        priority: Priority = Priority.STANDARD,
        deterministic: bool = False,
        **fields: Any,
    ) -> str:
        job = claimed(prompt, **fields)
        new = NewJob(
            id=f"j{time.monotonic_ns()}",
            model=model,
            input=job.input,
            total_steps=job.input["num_inference_steps"],
            priority=priority,
            deterministic=deterministic,
        )
        record, _ = await self.store.submit(new)
        return record.id

    async def until(self, job_id: str, condition: Callable[[JobRecord], bool]) -> JobRecord:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                try:
                    record = await self.store.get(job_id)
                    if condition(record):
                        return record
                except StoreUnavailable:
                    pass
                await asyncio.sleep(0.01)

    async def ended(self, job_id: str) -> JobRecord:
        return await self.until(job_id, lambda record: record.status.is_terminal)

    async def stepping(self, job_id: str, step: int = 2) -> JobRecord:
        return await self.until(job_id, lambda record: record.step >= step)

    async def events(self, job_id: str) -> list[dict[str, Any]]:
        """All events of a job that has ended."""
        return [event.data async for event in self._hub.watch(job_id)]

    async def workers(self, condition: Callable[[list[WorkerInfo]], bool]) -> list[WorkerInfo]:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                found = await list_workers(self.redis)
                if condition(found):
                    return found
                await asyncio.sleep(0.02)


@contextmanager
def keeping(settings: Settings) -> Iterator[None]:
    """A keeper in a thread, as if it had looked on for long."""
    assert settings.redis_url is not None
    stop = threading.Event()
    with connect(settings.redis_url) as redis:
        redis.set("denoised:reap_from", 0)
        keeper = Keeper(redis, settings, FileBlobStore(settings.blob_dir))
        thread = threading.Thread(target=keeper.run, args=(stop,))
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


@asynccontextmanager
async def station(settings: Settings) -> AsyncIterator[Station]:
    """Everything but workers, which are killed at the end if they still run."""
    assert settings.redis_url is not None
    redis = connect_async(settings.redis_url)
    hub = EventHub(redis)
    here = Station(settings, redis, hub)
    try:
        with keeping(settings):
            yield here
    finally:
        here.stop_all()
        await hub.close()
        await redis.aclose()
