"""The word about a dead worker reaches the job layer, whatever Redis does meanwhile."""

from __future__ import annotations

from denoised.dead_workers import DeadWorkers
from jobs.connections import connect, connect_async
from jobs.embedded_redis import EmbeddedRedis
from jobs.lease import LeaseClient
from jobs.store import JobStore
from jobs.types import NewJob
from tests.denoised.conftest import until

NAME = "here.7.aaaaaa"


async def test_a_death_while_redis_is_away_is_told_when_it_is_back(tmp_path, make_settings):
    server = EmbeddedRedis.start(tmp_path / "redis")
    settings = make_settings(redis_url=server.url, lease_seconds=3600.0)
    client = connect_async(server.url)
    new = NewJob(id="job_1", model="m", input={"prompt": "p"}, total_steps=4)
    await JobStore(client, settings).submit(new)
    await client.aclose()
    worker = LeaseClient(server.url, settings, NAME)
    [job] = worker.claim(["m"], 1)
    worker.close()
    server.stop()

    DeadWorkers(settings).report(NAME)

    with EmbeddedRedis.start(tmp_path / "redis") as server, connect(server.url) as redis:
        key = f"rq:job:{job.id}"
        until(lambda: redis.hget(key, "status") == b"queued", "the job is back on its queue")
