"""Worker processes as they live and die: killed, frozen, hung, drained, cut off from Redis."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from engine_harness import CPU, Bench, claimed
from process_harness import Station, station
from worker_script import LARGE_BYTES, LOAD_SECONDS

from config.settings import Settings
from jobs import keys, lease
from jobs.blobs import FileBlobStore
from jobs.embedded_redis import EmbeddedRedis
from jobs.types import ErrorCode, Priority, Status
from workers.outputs import read_recipe
from workers.process import EXIT_BROKEN, EXIT_NO_MODEL, Worker

LONG = 100_000


@pytest.fixture
async def here(settings: Settings) -> AsyncIterator[Station]:
    async with station(settings) as running:
        yield running


def terminal_events(events: list[dict[str, Any]]) -> list[str]:
    ends = ("job.succeeded", "job.failed", "job.cancelled")
    return [event["type"] for event in events if event["type"] in ends]


async def test_a_job_runs_through_a_real_queue_and_leaves_its_picture_with_the_recipe(
    here: Station,
) -> None:
    here.start()
    job = await here.submit(num_images=2, seed=5)
    record = await here.ended(job)
    assert record.status is Status.SUCCEEDED
    assert record.usage.steps == 4
    assert record.usage.gpu_seconds > 0
    blobs = FileBlobStore(here.settings.blob_dir)
    recipes = [read_recipe(blobs.path(output.key)) for output in record.outputs]
    assert [recipe["input"]["seed"] for recipe in recipes] == [5, 6]
    again = await here.submit(deterministic=True, **recipes[1]["input"])
    (output,) = (await here.ended(again)).outputs
    assert output.seed == 6
    # It may have come while the worker was still loading its model, and been told so.
    types = [event["type"] for event in await here.events(job) if "loading" not in event]
    assert types[:2] == ["job.queued", "job.started"]
    assert types[-1] == "job.succeeded"
    assert "job.progress" in types


async def test_thirty_two_jobs_at_once_run_in_batches(here: Station) -> None:
    jobs = [await here.submit() for _ in range(32)]
    here.start(step_seconds=0.05)
    records = [await here.ended(job) for job in jobs]
    assert {record.status for record in records} == {Status.SUCCEEDED}
    # Sharing a step costs each member less of it than the whole step took.
    assert min(record.usage.gpu_seconds for record in records) < 4 * 0.05


async def test_a_killed_workers_job_succeeds_elsewhere_as_attempt_two(here: Station) -> None:
    first = here.start(step_seconds=0.05)
    job = await here.submit(num_inference_steps=40)
    await here.stepping(job)
    first.send(signal.SIGKILL)
    here.start(step_seconds=0.001)
    record = await here.ended(job)
    assert (record.status, record.attempt) == (Status.SUCCEEDED, 2)
    events = await here.events(job)
    assert [e["cause"] for e in events if e["type"] == "job.requeued"] == ["lease_lapsed"]
    assert terminal_events(events) == ["job.succeeded"]


async def test_a_job_that_kills_its_worker_ends_as_worker_lost(here: Station) -> None:
    here.settings = here.settings.model_copy(update={"max_attempts": 2, "lease_seconds": 0.5})
    here.store._settings = here.settings
    job = await here.submit("die", num_inference_steps=10)
    for _ in range(2):
        worker = here.start(heartbeat_seconds=0.1, lease_seconds=0.5)
        assert await worker.exit_status() == -signal.SIGKILL
    record = await here.ended(job)
    assert record.status is Status.FAILED
    assert record.error is not None
    assert record.error.code is ErrorCode.WORKER_LOST


async def test_a_job_that_kills_its_worker_does_not_take_its_neighbours_with_it(
    here: Station,
) -> None:
    here.settings = here.settings.model_copy(update={"max_attempts": 2, "lease_seconds": 0.5})
    here.store._settings = here.settings
    changes = {"heartbeat_seconds": 0.1, "lease_seconds": 0.5, "step_seconds": 0.05}
    sound = [await here.submit(num_inference_steps=20) for _ in range(3)]
    worker = here.start(**changes)
    await here.stepping(sound[2])
    poison = await here.submit("die", priority=Priority.INTERACTIVE, num_inference_steps=10)
    records = {}
    for job in (poison, *sound):
        while job not in records:
            if not worker.process.is_alive():
                worker = here.start(**changes)
            record = await here.store.get(job)
            if record.status.is_terminal:
                records[job] = record
            await asyncio.sleep(0.01)
    assert records[poison].status is Status.FAILED
    assert {records[job].status for job in sound} == {Status.SUCCEEDED}
    assert {records[job].attempt for job in sound} == {2}


async def test_a_suspect_has_the_worker_to_itself_but_for_what_is_more_urgent(
    here: Station,
) -> None:
    here.settings = here.settings.model_copy(update={"max_attempts": 2})
    here.store._settings = here.settings
    first = here.start(step_seconds=0.02)
    lost = await here.submit("unlucky", num_inference_steps=2000)
    await here.stepping(lost)
    first.send(signal.SIGSTOP)
    here.start(step_seconds=0.02)
    early = await here.submit("early", num_inference_steps=250)
    await here.stepping(early)
    await here.until(lost, lambda record: record.attempt == 2 and record.step > 2)
    late = await here.submit("late", num_inference_steps=2)
    urgent = await here.submit("urgent", priority=Priority.INTERACTIVE, num_inference_steps=2)
    assert (await here.ended(urgent)).status is Status.SUCCEEDED
    await here.until(lost, lambda record: record.status is Status.RUNNING)
    record = await here.store.cancel(lost)
    assert record.attempt == 2
    await here.ended(lost)
    assert (await here.ended(late)).status is Status.SUCCEEDED
    record = await here.ended(early)
    assert (record.status, record.attempt) == (Status.SUCCEEDED, 1)
    events = [await here.events(job) for job in (lost, early, late)]
    requeued = [[e["cause"] for e in of if e["type"] == "job.requeued"] for of in events]
    assert requeued == [["lease_lapsed", "made_room"], ["made_room"], []]
    assert [e["step"] for e in events[0] if e["type"] == "job.requeued"][1] > 2
    [lost_ended] = [e["created_at"] for e in events[0] if e["type"] == "job.cancelled"]
    [late_started] = [e["created_at"] for e in events[2] if e["type"] == "job.started"]
    assert late_started >= lost_ended


async def test_a_frozen_worker_that_returns_changes_nothing_and_works_on(here: Station) -> None:
    zombie = here.start(step_seconds=0.05)
    job = await here.submit(num_inference_steps=60)
    await here.stepping(job)
    zombie.send(signal.SIGSTOP)
    here.start(step_seconds=0.001)
    record = await here.ended(job)
    assert (record.status, record.attempt) == (Status.SUCCEEDED, 2)
    zombie.send(signal.SIGCONT)
    await here.workers(lambda workers: len(workers) == 2)
    await here.workers(lambda workers: all(w.state == "idle" for w in workers))
    assert await here.store.get(job) == record
    assert terminal_events(await here.events(job)) == ["job.succeeded"]
    zombie.send(signal.SIGTERM)
    assert await zombie.exit_status() == 0


async def test_a_hung_step_ends_the_process_and_frees_the_job(here: Station) -> None:
    worker = here.start(step_timeout_seconds=0.5, heartbeat_seconds=0.1)
    job = await here.submit("hang", num_inference_steps=10)
    assert await worker.exit_status() == EXIT_BROKEN
    record = await here.store.get(job)
    assert (record.status, record.attempt) == (Status.QUEUED, 1)
    assert float(await here.redis.hget("denoised:fair", "") or 0) == 1, "charged as claimed"
    await here.store.cancel(job)
    events = await here.events(job)
    assert [e["cause"] for e in events if e["type"] == "job.requeued"] == ["worker_hung"]


async def test_a_lost_device_ends_the_process_and_frees_all_jobs(here: Station) -> None:
    worker = here.start()
    other = await here.submit(num_inference_steps=LONG, width=128)
    await here.stepping(other)
    bad = await here.submit("lost", priority=Priority.INTERACTIVE)
    assert await worker.exit_status() == EXIT_BROKEN
    for job in (bad, other):
        assert (await here.store.get(job)).status is Status.QUEUED
        causes = await here.redis.hget(f"rq:job:{job}", "causes")
        reason = "DeviceLost: CUDA error: device-side assert triggered"
        assert json.loads(causes or "") == [f"device_lost ({reason})"]


async def test_a_damaged_model_is_named_and_the_others_are_served(here: Station) -> None:
    here.start("damaged", "fake")
    job = await here.submit()
    assert (await here.ended(job)).status is Status.SUCCEEDED
    (worker,) = await here.workers(lambda workers: any(w.state == "idle" for w in workers))
    assert worker.models == ("fake",)
    assert worker.model_errors == {
        "damaged": "vae/model.safetensors: tensor decoder.weight is cut off"
    }
    assert worker.last_progress_at is not None
    assert worker.memory_bytes > 10_000_000


async def test_a_worker_without_any_model_says_why_before_it_ends(here: Station) -> None:
    worker = here.start("damaged")
    assert await worker.exit_status() == EXIT_NO_MODEL
    (info,) = await here.workers(lambda workers: bool(workers))
    assert info.models == ()
    assert "decoder.weight" in info.model_errors["damaged"]


async def test_models_that_do_not_fit_together_are_loaded_in_turn_and_the_lease_outlives_a_load(
    here: Station,
) -> None:
    assert here.settings.lease_seconds < LOAD_SECONDS
    here.start("large-1", "large-2", model_memory_bytes=LARGE_BYTES)
    (worker,) = await here.workers(lambda workers: any(w.state == "idle" for w in workers))
    assert (worker.models, worker.on_demand) == (("large-1",), ("large-2",))
    cold = await here.submit(model="large-2")
    (worker,) = await here.workers(lambda workers: any(w.loading for w in workers))
    assert worker.loading == "large-2"
    meanwhile = await here.submit(model="large-2")
    for job in (cold, meanwhile):
        record = await here.ended(job)
        assert (record.status, record.attempt) == (Status.SUCCEEDED, 1)
    told = [e["loading"] for e in await here.events(meanwhile) if "loading" in e]
    assert told[0]["bytes"] == LARGE_BYTES
    assert 0 <= told[0]["eta_seconds"] < 2 * LOAD_SECONDS
    events = [e for e in await here.events(cold) if e["type"] == "job.progress"]
    assert events[0]["stage"] == "loading"
    assert events[0]["loading"]["bytes"] == LARGE_BYTES
    assert all("loading" not in event for event in events[1:])
    (worker,) = await here.workers(lambda workers: any("large-2" in w.models for w in workers))
    assert (worker.loading, worker.on_demand) == (None, ("large-1",))
    warm_before = await here.submit(model="large-1")
    record = await here.ended(warm_before)
    assert (record.status, record.attempt) == (Status.SUCCEEDED, 1)


async def test_an_interactive_job_passes_a_full_engine(here: Station) -> None:
    here.start(max_batch_images=1)
    long = await here.submit(priority=Priority.BATCH, num_inference_steps=LONG)
    await here.stepping(long)
    urgent = await here.submit(priority=Priority.INTERACTIVE)
    assert (await here.ended(urgent)).status is Status.SUCCEEDED
    assert (await here.store.get(long)).status is Status.RUNNING


async def test_a_cancel_ends_the_running_job_and_no_other(here: Station) -> None:
    here.start()
    jobs = [await here.submit(num_inference_steps=LONG) for _ in range(2)]
    for job in jobs:
        await here.stepping(job)
    await here.store.cancel(jobs[0])
    assert (await here.ended(jobs[0])).status is Status.CANCELLED
    step = (await here.store.get(jobs[1])).step
    await here.stepping(jobs[1], step + 2)


async def test_a_restart_of_redis_costs_neither_the_job_nor_the_attempt(tmp_path: Path) -> None:
    folder = tmp_path / "redis"
    server = EmbeddedRedis.start(folder)
    settings = Settings(
        redis_url=server.url,
        data_dir=tmp_path,
        lease_seconds=1.0,
        heartbeat_seconds=0.2,
        reap_seconds=0.1,
    )
    async with station(settings) as here:
        try:
            here.start(step_seconds=0.02)
            job = await here.submit(num_inference_steps=100)
            await here.stepping(job, 5)
            os.kill(server.pid, signal.SIGKILL)
            server.stop()
            await asyncio.sleep(1.0)
            server = EmbeddedRedis.start(folder)
            record = await here.ended(job)
            assert (record.status, record.attempt) == (Status.SUCCEEDED, 1)
            steps = [
                event["progress"]["step"]
                for event in await here.events(job)
                if event["type"] == "job.progress"
            ]
            # It went on computing: the second away shows as steps that nobody was told of.
            jumps = [b - a for a, b in itertools.pairwise([*steps, 100])]
            assert max(jumps) >= 10
            assert record.usage.steps == 100
        finally:
            server.stop()


def test_a_busy_worker_whose_claim_finds_no_redis_steps_on(
    settings: Settings, keep_signal_handlers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease.time, "sleep", lambda seconds: pytest.fail("it waits"))
    bench = Bench()
    bench.engine.admit(claimed())
    worker = Worker(settings, "unix:///nowhere/redis.sock", CPU)
    worker._residents.pipelines.update(bench.pipelines)
    for _ in range(3):
        worker._go_on(bench.engine)
    assert len(bench.pipeline.batches) == 3


async def test_everything_ends_once_whatever_is_killed_in_between(here: Station) -> None:
    jobs = [await here.submit(num_inference_steps=10) for _ in range(12)]
    for _ in range(3):
        worker = here.start(step_seconds=0.02)
        pid = worker.pid
        await here.workers(lambda workers, pid=pid: any(w.pid == pid for w in workers))  # type: ignore[misc]
        await asyncio.sleep(0.5)
        worker.send(signal.SIGKILL)
    here.start(step_seconds=0.001)
    for job in jobs:
        record = await here.ended(job)
        assert record.attempt <= record.max_attempts
        assert record.status in (Status.SUCCEEDED, Status.FAILED)
        ends = Counter(terminal_events(await here.events(job)))
        assert sum(ends.values()) == 1


async def test_the_bell_of_a_model_is_left_to_workers_that_have_it_resident(here: Station) -> None:
    """Each ring is heard by one: the one with the model must not sleep while another loads it."""
    here.start("large-1", "large-2", model_memory_bytes=LARGE_BYTES)
    await here.workers(lambda workers: any(w.state == "idle" for w in workers))
    await here.redis.rpush(keys.wake("large-2"), "1")
    for _ in range(2):
        assert (await here.ended(await here.submit(model="large-1"))).status is Status.SUCCEEDED
    assert await here.redis.llen(keys.wake("large-2")) == 1
