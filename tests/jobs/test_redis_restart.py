"""Redis killed and started again under everybody: nothing accepted is lost, nobody gives up."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from config.settings import Settings
from jobs.blobs import FileBlobStore
from jobs.connections import connect, connect_async
from jobs.embedded_redis import EmbeddedRedis
from jobs.errors import StoreUnavailable
from jobs.events import EventHub
from jobs.keeper import Keeper
from jobs.lease import LeaseClient
from jobs.store import JobStore
from jobs.types import EventType, NewJob, Outcome, Progress, Stage, Status, Verdict

MODEL = "test-model"
MakeJob = Callable[..., NewJob]


class Server:
    """A Redis server that can be killed and started again on its directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.embedded = EmbeddedRedis.start(directory)

    def kill(self) -> None:
        """kill -9, once what was written has reached the file: a busy disk delays that."""
        with connect(self.embedded.url) as direct:
            direct.set("denoised:written", 1)
            direct.execute_command("WAITAOF", 1, 0, 5000)
        os.kill(self.embedded.pid, signal.SIGKILL)
        self.embedded.stop()

    def start(self) -> None:
        self.embedded = EmbeddedRedis.start(self.directory)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "redis")
    yield server
    server.embedded.stop()


@pytest.fixture
def settings(server: Server, make_settings: Callable[..., Settings]) -> Settings:
    return make_settings(redis_url=server.embedded.url)


async def test_jobs_attempts_and_watchers_survive_a_killed_redis(
    server: Server,
    settings: Settings,
    make_job: MakeJob,
    make_worker: Callable[..., LeaseClient],
) -> None:
    client = connect_async(server.embedded.url)
    store, hub, worker = JobStore(client, settings), EventHub(client), make_worker()
    ids = [(await store.submit(make_job()))[0].id for _ in range(5)]
    [job] = await asyncio.to_thread(worker.claim, [MODEL], 1)
    async with aclosing(hub.watch(job.id)) as watching:
        found = [await anext(watching), await anext(watching)]

        server.kill()
        with pytest.raises(StoreUnavailable):
            await store.submit(make_job())
        reporting = asyncio.create_task(
            asyncio.to_thread(worker.report, [Progress(job, Stage.DENOISING, 1, 4)])
        )
        beating = asyncio.create_task(asyncio.to_thread(worker.beat, [job]))
        await asyncio.sleep(0.2)
        assert not reporting.done()
        server.start()

        assert await reporting == [Verdict.CONTINUE]
        assert await beating == [Verdict.CONTINUE]
        assert await asyncio.to_thread(worker.finish, job, Outcome(Status.SUCCEEDED))
        found += [event async for event in watching]
    assert [event.type for event in found] == [
        EventType.QUEUED,
        EventType.STARTED,
        EventType.PROGRESS,
        EventType.SUCCEEDED,
    ]
    record = await store.get(job.id)
    assert (record.status, record.attempt) == (Status.SUCCEEDED, 1)
    rest = await asyncio.to_thread(worker.claim, [MODEL], 8)
    assert [waiting.id for waiting in rest] == [job_id for job_id in ids if job_id != job.id]
    await hub.close()
    await client.aclose()


async def test_a_finish_during_the_outage_is_written_once(
    server: Server,
    settings: Settings,
    make_job: MakeJob,
    make_worker: Callable[..., LeaseClient],
) -> None:
    client = connect_async(server.embedded.url)
    store, worker = JobStore(client, settings), make_worker()
    record, _ = await store.submit(make_job())
    [job] = worker.claim([MODEL], 1)
    server.kill()
    finishing = asyncio.create_task(
        asyncio.to_thread(worker.finish, job, Outcome(Status.SUCCEEDED))
    )
    await asyncio.sleep(0.2)
    assert not finishing.done()
    server.start()
    assert await finishing
    assert (await store.get(record.id)).status is Status.SUCCEEDED
    with connect(server.embedded.url) as direct:
        assert direct.xlen(f"rq:results:{record.id}") == 1
    await client.aclose()


async def test_a_restart_longer_than_the_lease_burns_no_attempt(
    server: Server,
    settings: Settings,
    make_job: MakeJob,
    make_worker: Callable[..., LeaseClient],
    make_settings: Callable[..., Settings],
) -> None:
    settings = make_settings(
        redis_url=server.embedded.url, lease_seconds=0.5, heartbeat_seconds=0.25
    )
    client = connect_async(server.embedded.url)
    store, worker = JobStore(client, settings), make_worker(settings=settings)
    await store.submit(make_job())
    [job] = worker.claim([MODEL], 1)
    server.kill()
    await asyncio.sleep(0.6)
    server.start()
    with connect(server.embedded.url) as direct:
        lease_end = direct.zscore("denoised:wip", f"{job.id}:{job.execution_id}")
        assert lease_end is not None
        assert lease_end < time.time(), "it lapsed while Redis was away"
        keeper = Keeper(direct, settings, FileBlobStore(settings.blob_dir))
        assert keeper.run_once().requeued == ()
    assert worker.beat([job]) == [Verdict.CONTINUE]
    assert worker.finish(job, Outcome(Status.SUCCEEDED))
    assert (await store.get(job.id)).attempt == 1
    await client.aclose()


async def test_a_full_disk_is_waited_out_and_costs_no_job(
    tmp_path: Path,
    make_job: MakeJob,
    make_worker: Callable[..., LeaseClient],
    make_settings: Callable[..., Settings],
) -> None:
    """Redis refuses writes (MISCONF) from a snapshot that failed to the next that succeeds."""
    # A directory with a long name has its socket elsewhere, so that it can be taken away.
    directory = tmp_path / ("d" * 120)
    with EmbeddedRedis.start(directory) as embedded, connect(embedded.url) as direct:
        settings = make_settings(redis_url=embedded.url)
        client = connect_async(embedded.url)
        store, worker = JobStore(client, settings), make_worker(settings=settings)
        record, _ = await store.submit(make_job())
        [job] = worker.claim([MODEL], 1)
        direct.config_set("save", "3600 1")
        shutil.rmtree(directory)
        direct.bgsave()
        while direct.info("persistence")["rdb_last_bgsave_status"] == "ok":
            await asyncio.sleep(0.01)
        with pytest.raises(StoreUnavailable, match="MISCONF"):
            await store.submit(make_job())
        with pytest.raises(StoreUnavailable, match="MISCONF"):
            await store.cancel(record.id)
        finishing = asyncio.create_task(
            asyncio.to_thread(worker.finish, job, Outcome(Status.SUCCEEDED))
        )
        await asyncio.sleep(0.2)
        assert not finishing.done()
        direct.config_set("stop-writes-on-bgsave-error", "no")
        assert await finishing
        assert (await store.get(record.id)).status is Status.SUCCEEDED
        await client.aclose()
