"""Jobs that are taken back at once wait in the order in which they came, before all others."""

from __future__ import annotations

import pytest
from redis import Redis

from config.settings import Settings
from jobs.dead_worker import take_back
from jobs.keeper import Keeper
from jobs.lease import LeaseClient
from jobs.store import JobStore
from jobs.types import ClaimedJob, Priority
from tests.jobs.conftest import MODEL, Lapse, MakeJob

HELD = 12


@pytest.fixture
async def held(store: JobStore, make_job: MakeJob, worker: LeaseClient) -> list[ClaimedJob]:
    """Jobs under lease, the oldest first; two more of each class wait."""
    for _ in range(HELD):
        await store.submit(make_job())
    held = worker.claim([MODEL], HELD)
    for priority in (Priority.STANDARD, Priority.BATCH):
        await store.submit(make_job(priority=priority))
    return held


async def test_jobs_whose_leases_lapse_together_keep_their_order(
    held: list[ClaimedJob], worker: LeaseClient, keeper: Keeper, lapse: Lapse
) -> None:
    # The order of leases says nothing: every beat renews them anew.
    for job in reversed(held):
        lapse(job)
    assert len(keeper.run_once().requeued) == HELD
    assert [job.id for job in worker.claim([MODEL], HELD)] == [job.id for job in held]


async def test_the_jobs_of_a_dead_worker_keep_their_order(
    held: list[ClaimedJob], worker: LeaseClient, redis_client: Redis, settings: Settings
) -> None:
    assert len(take_back(redis_client, settings, "worker-a")) == HELD
    assert [job.id for job in worker.claim([MODEL], HELD)] == [job.id for job in held]
