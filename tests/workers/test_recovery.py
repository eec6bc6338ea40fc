"""Workers killed and drained in the middle of long jobs: others go on where these have got to."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from process_harness import PATIENCE_SECONDS, Station, WorkerProcess, station
from worker_script import SLOW_DISK

from config.settings import Settings
from jobs.blobs import PART_SUFFIX, FileBlobStore
from jobs.checkpoints import CHECKPOINTS
from jobs.types import JobRecord, Status

STEPS = 250
SLOW = 0.01


@pytest.fixture
async def here(settings: Settings) -> AsyncIterator[Station]:
    often = settings.model_copy(update={"checkpoint_seconds": 0.2})
    async with station(often) as running:
        yield running


async def idle(here: Station, count: int) -> None:
    await here.workers(lambda found: sum(w.state == "idle" for w in found) == count)


async def checkpointed(here: Station, job: str) -> int:
    """The step of the first checkpoint of a job, once it points at one."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while (step := await here.redis.hget(f"rq:job:{job}", "checkpoint_step")) is None:
            await asyncio.sleep(0.005)
    return int(step)


async def holder(here: Station, job: str, workers: Sequence[WorkerProcess]) -> WorkerProcess:
    name = (await here.store.get(job)).worker
    assert name is not None
    (found,) = [worker for worker in workers if f".{worker.pid}." in name]
    return found


def contents(here: Station, record: JobRecord) -> list[bytes]:
    assert record.status is Status.SUCCEEDED, record.error
    blobs = FileBlobStore(here.settings.blob_dir)
    return [blobs.read(output.key) for output in record.outputs]


async def none_left(here: Station, job: str) -> None:
    """The worker that ended the job removes its checkpoints in the background."""
    blobs = FileBlobStore(here.settings.blob_dir)
    async with asyncio.timeout(PATIENCE_SECONDS):
        while blobs.keys_in(f"jobs/{job}/{CHECKPOINTS}"):
            await asyncio.sleep(0.01)


def checkpoint_parts(here: Station, job: str) -> list[Path]:
    """Checkpoints of the job that are being written."""
    return [*(here.settings.blob_dir / f"jobs/{job}/{CHECKPOINTS}").glob(f".*{PART_SUFFIX}")]


async def frozen_while(worker: WorkerProcess, is_so: Callable[[], bool]) -> None:
    """Freezes the worker in a moment in which `is_so` holds and keeps holding."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            while not is_so():
                await asyncio.sleep(0.005)
            worker.send(signal.SIGSTOP)
            await asyncio.sleep(0.05)
            if is_so():
                return
            worker.send(signal.SIGCONT)


def of_type(events: Sequence[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [event for event in events if event["type"] == kind]


def first_step_after(events: Sequence[dict[str, Any]], kind: str) -> int:
    """The first new step that watchers saw after the last event of a kind."""
    last = max(i for i, event in enumerate(events) if event["type"] == kind)
    reported = [e["progress"]["step"] for e in of_type(events[last:], "job.progress")]
    return next(step for step in reported if step > reported[0])


async def test_a_killed_workers_job_goes_on_at_its_checkpoint_with_the_same_bytes(
    here: Station,
) -> None:
    workers = [here.start(step_seconds=SLOW) for _ in range(2)]
    await idle(here, 2)
    fields: dict[str, Any] = {"num_inference_steps": STEPS, "num_images": 2, "seed": 11}
    unbroken = await here.ended(await here.submit(**fields))
    job = await here.submit(**fields)
    seen = await checkpointed(here, job)
    (await holder(here, job, workers)).send(signal.SIGKILL)
    record = await here.ended(job)
    assert contents(here, record) == contents(here, unbroken)
    assert record.attempt == 2
    events = await here.events(job)
    [requeued] = of_type(events, "job.requeued")
    step = requeued["step"]
    assert requeued["cause"] == "lease_lapsed"
    assert step >= seen > 0
    # At most twenty events a second are told.
    assert step < first_step_after(events, "job.requeued") <= step + 0.2 / SLOW
    assert of_type(events, "job.restarted") == []
    assert record.usage.resumed_steps == step
    # The killed attempt counts up to its checkpoint.
    assert record.usage.steps == STEPS
    await none_left(here, job)


async def test_a_deterministic_job_of_a_real_model_is_resumed_to_the_bit(here: Station) -> None:
    workers = [here.start("sana-demo", device="cpu", dtype="float32") for _ in range(2)]
    await idle(here, 2)
    fields: dict[str, Any] = {
        "model": "sana-demo",
        "prompt": "a red circle on a blue background",
        "deterministic": True,
        "num_inference_steps": 100,
        "num_images": 2,
        "width": 256,
        "height": 256,
        "seed": 3,
    }
    unbroken = await here.ended(await here.submit(**fields))
    job = await here.submit(**fields)
    assert await checkpointed(here, job) > 0
    (await holder(here, job, workers)).send(signal.SIGKILL)
    record = await here.ended(job)
    assert contents(here, record) == contents(here, unbroken)
    assert record.attempt == 2
    assert record.usage.resumed_steps > 0
    assert record.usage.steps == 100


async def test_a_drained_workers_jobs_go_on_where_it_stopped_without_losing_an_attempt(
    here: Station,
) -> None:
    first = here.start(step_seconds=SLOW, drain_seconds=0.5, max_batch_images=2)
    fields: dict[str, Any] = {"num_inference_steps": STEPS}
    jobs = [await here.submit(seed=seed, **fields) for seed in range(2)]
    for job in jobs:
        await here.stepping(job, 5)
    first.send(signal.SIGTERM)
    assert await first.exit_status() == 0
    handed_back = [await here.store.get(job) for job in jobs]
    assert {record.status for record in handed_back} == {Status.QUEUED}
    second = here.start(step_seconds=0.001)
    for job, before in zip(jobs, handed_back, strict=True):
        record = await here.ended(job)
        assert (record.status, record.attempt) == (Status.SUCCEEDED, 1)
        assert record.usage.resumed_steps == before.step == before.usage.steps >= 5
        assert record.usage.steps == STEPS
        [requeued] = of_type(await here.events(job), "job.requeued")
        assert (requeued["cause"], requeued["step"]) == ("drained", before.step)
        undisturbed = await here.ended(await here.submit(seed=record.input["seed"], **fields))
        assert contents(here, record) == contents(here, undisturbed)
        await none_left(here, job)
    second.send(signal.SIGTERM)
    assert await second.exit_status() == 0


async def test_a_drain_hands_back_at_once_what_cannot_end_in_time_and_ends_the_rest(
    here: Station,
) -> None:
    worker = here.start(step_seconds=SLOW, drain_seconds=30.0)
    long = await here.submit(num_inference_steps=100_000)
    short = await here.submit(num_inference_steps=200, width=128)
    await here.stepping(long)
    await here.stepping(short)
    worker.send(signal.SIGTERM)
    back = await here.until(long, lambda record: record.status is Status.QUEUED)
    assert back.step >= 2
    assert (await here.store.get(short)).status is Status.RUNNING
    assert await worker.exit_status() == 0
    assert (await here.store.get(short)).status is Status.SUCCEEDED


async def test_a_damaged_checkpoint_means_a_restart_that_is_told_and_the_same_bytes(
    here: Station,
) -> None:
    fields: dict[str, Any] = {"num_inference_steps": STEPS, "seed": 12}
    first = here.start(step_seconds=SLOW)
    job = await here.submit(**fields)
    await checkpointed(here, job)
    first.send(signal.SIGKILL)
    await first.exit_status()
    blobs = FileBlobStore(here.settings.blob_dir)
    for key in blobs.keys_in(f"jobs/{job}/{CHECKPOINTS}"):
        path = blobs.path(key)
        path.write_bytes(path.read_bytes()[:-8] + b"not this")
    here.start(step_seconds=0.001)
    record = await here.ended(job)
    events = await here.events(job)
    [requeued], [restarted] = of_type(events, "job.requeued"), of_type(events, "job.restarted")
    assert requeued["step"] > 0
    assert (restarted["cause"], restarted["step"]) == ("checkpoint_damaged", 0)
    assert (restarted["status"], restarted["attempt"]) == ("running", 2)
    assert record.usage.resumed_steps == 0
    assert record.usage.steps == requeued["step"] + STEPS
    undisturbed = await here.ended(await here.submit(**fields))
    assert contents(here, record) == contents(here, undisturbed)
    await none_left(here, job)


async def test_a_frozen_worker_that_returns_neither_moves_nor_removes_a_checkpoint(
    here: Station,
) -> None:
    blobs, slow = FileBlobStore(here.settings.blob_dir), here.settings.data_dir / SLOW_DISK
    slow.touch()
    zombie = here.start(step_seconds=4 * SLOW)
    job = await here.submit(num_inference_steps=150)
    await checkpointed(here, job)
    # Its next checkpoint is on the way to the disk.
    await frozen_while(zombie, lambda: any(checkpoint_parts(here, job)))
    slow.unlink()
    await here.until(job, lambda record: record.status is Status.QUEUED)
    pointer = await here.redis.hget(f"rq:job:{job}", "checkpoint")
    step = int(await here.redis.hget(f"rq:job:{job}", "checkpoint_step"))
    # Takes no checkpoint that would move the pointer before the job ends.
    here.start(step_seconds=SLOW, checkpoint_seconds=60.0)
    await here.stepping(job, step + 1)
    zombie.send(signal.SIGCONT)
    kept, there = set(), set()
    while True:
        seen = await here.redis.hget(f"rq:job:{job}", "checkpoint")
        files = blobs.keys_in(f"jobs/{job}/{CHECKPOINTS}")
        if (await here.store.get(job)).status.is_terminal:
            break
        kept.add((seen, pointer.decode() in files))
        there.update(files)
        await asyncio.sleep(0.01)
    assert len(there) == 2, "the late checkpoint never came to the disk"
    assert kept == {(pointer, True)}
    record = await here.ended(job)
    assert (record.status, record.attempt) == (Status.SUCCEEDED, 2)
    assert record.usage.resumed_steps == step
    assert of_type(await here.events(job), "job.restarted") == []
