"""When a lapsed lease says nothing: Redis has just started, was frozen, its clock was set back."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis

from config.settings import Settings
from jobs import scripts
from jobs.blobs import FileBlobStore
from jobs.connections import connect
from jobs.embedded_redis import EmbeddedRedis
from jobs.keeper import Keeper, KeeperReport
from jobs.lease import LeaseClient
from jobs.types import Outcome, Status, Verdict
from tests.jobs.conftest import MODEL, REAP_FROM, ClaimOne, Lapse


@pytest.fixture
def young_redis(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis.start(tmp_path / "young") as server:
        yield server


def test_nothing_is_reaped_from_a_redis_that_has_just_started(
    young_redis: EmbeddedRedis, make_settings: Callable[..., Settings], blobs: FileBlobStore
) -> None:
    """The leases on its disk are old, the workers behind them may be alive."""
    settings = make_settings(redis_url=young_redis.url, lease_seconds=1.0)
    with connect(young_redis.url) as client:
        client.hset("rq:job:j", mapping={"status": "started", "exec": "e", "origin": "m:standard"})
        client.zadd("denoised:wip", {"j:e": 1})
        keeper = Keeper(client, settings, blobs)
        report = KeeperReport()
        while report == KeeperReport():
            report = keeper.run_once()
            if client.info("server")["uptime_in_seconds"] <= settings.lease_seconds + 1:
                assert report == KeeperReport()
            time.sleep(0.1)
        assert report.requeued == ("j",)


async def test_a_frozen_redis_burns_no_attempt(
    redis_server: EmbeddedRedis,
    redis_client: Redis,
    make_settings: Callable[..., Settings],
    make_worker: Callable[..., LeaseClient],
    claim_one: ClaimOne,
    keeper: Keeper,
    blobs: FileBlobStore,
) -> None:
    """The lease lapses while nobody can renew it; the first to come back may be the keeper."""
    settings = make_settings(lease_seconds=0.5, heartbeat_seconds=0.25)
    worker = make_worker(settings=settings)
    keeper = Keeper(redis_client, settings, blobs)
    job = await claim_one(worker)
    keeper.run_once()
    os.kill(redis_server.pid, signal.SIGSTOP)
    time.sleep(0.6)
    os.kill(redis_server.pid, signal.SIGCONT)
    lease_end = redis_client.zscore("denoised:wip", f"{job.id}:{job.execution_id}")
    assert lease_end is not None
    assert lease_end < time.time()
    assert keeper.run_once().requeued == ()
    assert worker.beat([job]) == [Verdict.CONTINUE]
    assert worker.finish(job, Outcome(Status.SUCCEEDED))


async def test_a_clock_that_was_set_back_holds_the_reaper_up_no_longer_than_a_freeze(
    redis_client: Redis,
    settings: Settings,
    claim_one: ClaimOne,
    keeper: Keeper,
    lapse: Lapse,
) -> None:
    job = await claim_one()
    lapse(job)
    now = redis_client.time()[0]
    redis_client.set(REAP_FROM, now + 86_400)
    assert keeper.run_once().requeued == ()
    left = float(redis_client.get(REAP_FROM)) - redis_client.time()[0]
    assert left <= settings.lease_seconds + 2
    requeued: tuple[str, ...] = ()
    while not requeued:
        requeued = keeper.run_once().requeued
        time.sleep(0.05)
    assert requeued == (job.id,)


async def test_a_clock_set_back_to_before_the_server_started_does_not_stop_the_reaper(
    redis_client: Redis, settings: Settings, claim_one: ClaimOne, keeper: Keeper, lapse: Lapse
) -> None:
    """Its uptime is negative then, until the clock has caught up: hours, perhaps."""
    job = await claim_one()
    lapse(job)
    asked = "redis.call('INFO', 'server')"
    assert scripts.REAP.source.count(asked) == 1
    source = scripts.REAP.source.replace(asked, "('uptime_in_seconds:-3600')")
    reaped = redis_client.eval(source, 0, settings.lease_seconds, 10, 60, 60, 60_000)
    assert reaped == [[job.id.encode(), MODEL.encode(), b"requeued"]]
