"""Worker processes that are told to stop: what they finish, leave and hand back, and how soon."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from engine_harness import CPU, Bench, claimed
from process_harness import Station, station
from worker_script import LARGE_BYTES

from config.settings import Settings
from jobs.embedded_redis import EmbeddedRedis
from jobs.lease import RETRY_SECONDS
from jobs.types import ClaimedJob, Stage, Status, Usage
from workers.process import Worker

LONG = 100_000


@pytest.fixture
async def here(settings: Settings) -> AsyncIterator[Station]:
    async with station(settings) as running:
        yield running


async def test_sigterm_finishes_what_runs_and_leaves_the_rest_queued(here: Station) -> None:
    worker = here.start(max_batch_images=1, step_seconds=0.03)
    running = await here.submit(num_inference_steps=30)
    await here.stepping(running)
    waiting = await here.submit()
    worker.send(signal.SIGTERM)
    assert await worker.exit_status() == 0
    assert (await here.store.get(running)).status is Status.SUCCEEDED
    assert (await here.store.get(waiting)).status is Status.QUEUED
    assert await here.workers(lambda workers: True) == []


@pytest.mark.parametrize("signals", [1, 2])
async def test_a_job_that_outlasts_the_drain_goes_back_with_its_attempt(
    here: Station, signals: int
) -> None:
    worker = here.start(drain_seconds=0.2 if signals == 1 else 1e6)
    job = await here.submit(num_inference_steps=LONG)
    await here.stepping(job)
    worker.send(signal.SIGTERM)
    if signals == 2:
        await here.workers(lambda workers: any(w.state == "draining" for w in workers))
        worker.send(signal.SIGTERM)
    assert await worker.exit_status() == 0
    record = await here.store.get(job)
    assert (record.status, record.attempt) == (Status.QUEUED, 0)
    assert record.step == record.usage.steps >= 2
    await here.store.cancel(job)
    events = await here.events(job)
    handed_back = [(e["cause"], e["step"]) for e in events if e["type"] == "job.requeued"]
    assert handed_back == [("drained", record.step)]


async def test_a_drain_leaves_a_long_decode_and_keeps_the_last_step(here: Station) -> None:
    worker = here.start(drain_seconds=0.2)
    job = await here.submit("endless-decode")
    await here.until(job, lambda record: record.stage is Stage.DECODING)
    worker.send(signal.SIGTERM)
    assert await worker.exit_status() == 0
    record = await here.store.get(job)
    assert (record.status, record.attempt) == (Status.QUEUED, 0)
    assert record.step == record.usage.steps == 4
    await here.store.cancel(job)


async def test_a_load_is_left_when_the_worker_is_told_to_stop(here: Station) -> None:
    starting = here.start("endless-1")
    await here.workers(lambda workers: any(w.state == "starting" for w in workers))
    starting.send(signal.SIGTERM)
    assert await starting.exit_status() == 0
    # A job of another model is held beside the load.
    serving = here.start(
        "fake",
        "large-1",
        "endless-2",
        model_memory_bytes=LARGE_BYTES,
        model_switch_seconds=0.1,
        drain_seconds=0.2,
    )
    held = await here.submit(num_inference_steps=LONG)
    await here.stepping(held)
    cold = await here.submit(model="endless-2")
    await here.until(cold, lambda record: record.stage is Stage.LOADING)
    serving.send(signal.SIGTERM)
    assert await serving.exit_status() == 0
    for job in (held, cold):
        record = await here.store.get(job)
        assert (record.status, record.attempt) == (Status.QUEUED, 0)
        await here.store.cancel(job)
        events = await here.events(job)
        assert [e["cause"] for e in events if e["type"] == "job.requeued"] == ["drained"]
    assert await here.workers(lambda workers: True) == []


def test_a_worker_that_waits_for_redis_to_hand_a_job_back_is_not_hung(
    settings: Settings, keep_signal_handlers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench()
    bench.engine.admit(claimed())
    worker = Worker(settings, "unix:///nowhere/redis.sock", CPU)
    silent: list[float] = []

    def requeue(
        job: ClaimedJob, cause: str, refund_attempt: bool, usage: Usage, detail: str = ""
    ) -> bool:
        worker._pulse._last -= 1000.0
        silent.append(worker._pulse.silent_seconds)
        return True

    monkeypatch.setattr(worker._lease, "requeue", requeue)
    worker._hand_back(bench.engine, "drained", refund=True)
    worker._switching.admit(claimed(model="evicted"), bench.engine)
    assert silent == [0.0, 0.0]


@pytest.mark.parametrize("holds_a_job", [False, True])
async def test_a_worker_that_is_told_to_stop_does_not_wait_for_redis(
    tmp_path: Path, holds_a_job: bool
) -> None:
    with EmbeddedRedis.start(tmp_path / "redis") as server:
        settings = Settings(redis_url=server.url, data_dir=tmp_path, drain_seconds=0.2)
        async with station(settings) as here:
            worker = here.start()
            await here.workers(lambda workers: any(w.state == "idle" for w in workers))
            if holds_a_job:
                await here.stepping(await here.submit(num_inference_steps=LONG))
            os.kill(server.pid, signal.SIGKILL)
            server.stop()
            # Long enough for the pauses between two attempts to have grown to a second.
            await asyncio.sleep(2.0)
            worker.send(signal.SIGTERM)
            async with asyncio.timeout(RETRY_SECONDS / 4):
                assert await worker.exit_status() == 0
