"""Real processes killed, frozen and cut off in the middle of a job."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from config.settings import Settings
from jobs.blobs import FileBlobStore
from jobs.connections import connect
from jobs.keeper import Keeper
from jobs.store import JobStore
from jobs.types import JobRecord, NewJob, Status

ROOT = Path(__file__).parents[2]
MakeJob = Callable[..., NewJob]
TERMINAL = {b"job.succeeded", b"job.failed", b"job.cancelled"}


class WorkerProcess:
    """A `lease_worker.py` and the lines it has printed."""

    def __init__(self, url: str, name: str, steps: int, seconds: float) -> None:
        program = Path(__file__).with_name("lease_worker.py")
        self.process = subprocess.Popen(
            [sys.executable, str(program), url, name, str(steps), str(seconds)],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.until("ready")

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.strip())

    def until(self, line: str) -> None:
        deadline = time.monotonic() + 30
        while line not in self.lines:
            assert time.monotonic() < deadline, f"no {line!r} in {self.lines}"
            time.sleep(0.005)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def start(settings: Settings) -> Iterator[Callable[..., WorkerProcess]]:
    """Starts workers; they are ended after the test."""
    started: list[WorkerProcess] = []

    def start(name: str, *, steps: int = 5, seconds: float = 0.02) -> WorkerProcess:
        assert settings.redis_url is not None
        started.append(WorkerProcess(settings.redis_url, name, steps, seconds))
        return started[-1]

    yield start
    for worker in started:
        worker.end()


@pytest.fixture
def running_keeper(
    keeper: Keeper, make_settings: Callable[..., Settings], blobs: FileBlobStore
) -> Iterator[None]:
    """A keeper in its loop, for leases of one second."""
    settings = make_settings(lease_seconds=1.0)
    assert settings.redis_url is not None
    stop = threading.Event()
    with connect(settings.redis_url) as client:
        thread = threading.Thread(target=Keeper(client, settings, blobs).run, args=(stop,))
        thread.start()
        yield
        stop.set()
        thread.join()


async def ended(store: JobStore, job_id: str) -> JobRecord:
    deadline = time.monotonic() + 30
    while not (record := await store.get(job_id)).status.is_terminal:
        assert time.monotonic() < deadline, record
        time.sleep(0.01)
    return record


def kinds(client: Redis, job_id: str) -> list[bytes]:
    return [entry[b"type"] for _, entry in client.xrange(f"denoised:ev:{job_id}")]


@pytest.mark.usefixtures("running_keeper")
async def test_a_killed_workers_job_goes_on_elsewhere(
    redis: AsyncRedis,
    redis_client: Redis,
    store: JobStore,
    make_job: MakeJob,
    start: Callable[..., WorkerProcess],
) -> None:
    first = start("first", steps=1000)
    record, _ = await store.submit(make_job())
    first.until("step 3")
    first.process.send_signal(signal.SIGKILL)
    second = start("second")
    record = await ended(store, record.id)
    assert (record.status, record.attempt, record.worker) == (Status.SUCCEEDED, 2, "second")
    second.until("finished")
    found = kinds(redis_client, record.id)
    assert found.count(b"job.requeued") == 1
    assert [kind for kind in found if kind in TERMINAL] == [b"job.succeeded"]
    assert redis_client.xlen(f"rq:results:{record.id}") == 1


@pytest.mark.usefixtures("running_keeper")
async def test_a_frozen_worker_comes_back_as_a_zombie_without_effect(
    redis_client: Redis,
    store: JobStore,
    make_job: MakeJob,
    start: Callable[..., WorkerProcess],
) -> None:
    first = start("first", steps=1000)
    record, _ = await store.submit(make_job())
    first.until("step 3")
    first.process.send_signal(signal.SIGSTOP)
    start("second")
    record = await ended(store, record.id)
    before = redis_client.hgetall(f"rq:job:{record.id}")
    first.process.send_signal(signal.SIGCONT)
    first.until("lease_lost")
    assert (await store.get(record.id)) == record
    assert redis_client.hgetall(f"rq:job:{record.id}") == before
    assert record.worker == "second"
    assert "overwrote" not in first.lines
    assert redis_client.xlen(f"rq:results:{record.id}") == 1
    # The zombie is a sound worker again.
    again, _ = await store.submit(make_job())
    await store.cancel(again.id)
    assert (await ended(store, again.id)).status is Status.CANCELLED


@pytest.mark.usefixtures("running_keeper")
async def test_a_worker_stops_at_the_step_after_a_cancel(
    redis_client: Redis,
    store: JobStore,
    make_job: MakeJob,
    start: Callable[..., WorkerProcess],
) -> None:
    worker = start("only", steps=1000)
    record, _ = await store.submit(make_job())
    worker.until("step 2")
    await store.cancel(record.id)
    worker.until("cancel")
    assert (await ended(store, record.id)).status is Status.CANCELLED
    assert kinds(redis_client, record.id)[-1] == b"job.cancelled"
