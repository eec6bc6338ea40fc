"""The whole life of jobs against a model: any order of calls, by live workers and by zombies.

After every step Redis must agree with a few lines of Python: one status, one ending, one result,
attempts within their bound, no lease and no queue entry too many.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis import Redis

from config.settings import Settings
from jobs.checkpoints import checkpoint_key
from jobs.connections import connect_async
from jobs.keeper import Keeper
from jobs.lease import LeaseClient
from jobs.store import JobStore
from jobs.types import (
    Checkpoint,
    ClaimedJob,
    ErrorCode,
    JobFailure,
    NewJob,
    Outcome,
    Priority,
    Progress,
    Stage,
    Status,
    Usage,
    Verdict,
)

MODEL = "test-model"
MAX_ATTEMPTS = 2
TERMINAL = {b"job.succeeded", b"job.failed", b"job.cancelled"}
OUTCOMES = (
    Outcome(Status.SUCCEEDED, usage=Usage(gpu_seconds=1.0, steps=4)),
    Outcome(Status.FAILED, failure=JobFailure(code=ErrorCode.INTERNAL, message="broken")),
    Outcome(Status.CANCELLED),
)


@dataclass
class Expected:
    """What one job should look like."""

    status: Status = Status.QUEUED
    attempt: int = 0
    cancel: bool = False
    holder: str | None = None
    last: str = ""
    steps: int = 0
    booked: int = 0
    checkpoint: int = 0
    seen: list[Status] = field(default_factory=list)

    def end(self, status: Status, by: str) -> None:
        self.status, self.holder, self.last = status, None, by
        self.checkpoint = 0
        self.seen.append(status)

    def book(self, steps: int) -> None:
        self.steps += max(0, steps - self.booked)
        self.booked = max(steps, self.booked)

    def put_back(self, by: str, refund: bool) -> None:
        if self.cancel:
            self.end(Status.CANCELLED, by)
        elif not refund and self.attempt >= MAX_ATTEMPTS:
            self.end(Status.FAILED, by)
        else:
            self.status, self.holder, self.last = Status.QUEUED, None, by
            self.attempt -= refund


class Lifecycle(RuleBasedStateMachine):
    """Two workers, one API, one keeper; `redis`, `settings` and `keeper` are set by the test."""

    redis: Redis
    settings: Settings
    keeper: Keeper

    ids = Bundle("ids")
    claims = Bundle("claims")

    def __init__(self) -> None:
        super().__init__()
        self.redis.flushdb()
        url = str(self.settings.redis_url)
        self.runner = asyncio.Runner()
        self.client = connect_async(url)
        self.store = JobStore(self.client, self.settings)
        self.workers = [LeaseClient(url, self.settings, f"worker-{n}") for n in range(2)]
        self.expected: dict[str, Expected] = {}

    def teardown(self) -> None:
        for worker in self.workers:
            worker.close()
        self.runner.run(self.client.aclose())
        self.runner.close()

    @rule(target=ids, priority=st.sampled_from(Priority))
    def submit(self, priority: Priority) -> str:
        job = NewJob(uuid.uuid4().hex, MODEL, {"prompt": "x"}, 4, priority)
        self.runner.run(self.store.submit(job))
        self.expected[job.id] = Expected()
        return job.id

    @rule(target=claims, worker=st.integers(0, 1), limit=st.integers(1, 3))
    def claim(self, worker: int, limit: int) -> Any:
        waiting = [job for job in self.expected.values() if job.status is Status.QUEUED]
        claimed = self.workers[worker].claim([MODEL], limit)
        assert len(claimed) == min(limit, len(waiting))
        for job in claimed:
            mine = self.expected[job.id]
            assert mine.status is Status.QUEUED
            mine.status, mine.holder = Status.RUNNING, job.execution_id
            mine.attempt += 1
            mine.booked = 0
            assert job.attempt == mine.attempt
            assert (job.checkpoint.step if job.checkpoint else 0) == mine.checkpoint
        return multiple(*claimed)

    @rule(job=claims, step=st.integers(0, 4), quiet=st.booleans())
    def report(self, job: ClaimedJob, step: int, quiet: bool) -> None:
        mine = self.expected[job.id]
        verdict = Verdict.LEASE_LOST
        if mine.holder == job.execution_id:
            verdict = Verdict.CANCEL if mine.cancel else Verdict.CONTINUE
        update = Progress(job, Stage.DENOISING, step, 4, event=not quiet)
        assert self.workers[0].report([update]) == [verdict]
        assert self.workers[1].beat([job]) == [verdict]

    @rule(job=claims, step=st.integers(1, 4))
    def checkpoint(self, job: ClaimedJob, step: int) -> None:
        mine = self.expected[job.id]
        moves = mine.holder == job.execution_id and step > mine.checkpoint
        key = checkpoint_key(job.id, job.execution_id, step)
        recorded = self.workers[0].record_checkpoint(
            job, Checkpoint(key, step, "0" * 64), Usage(steps=step)
        )
        assert recorded or not moves
        if moves:
            mine.checkpoint = step
            mine.book(step)

    @rule(job=claims)
    def restart(self, job: ClaimedJob) -> None:
        mine = self.expected[job.id]
        if job.checkpoint is None:
            return
        holds = mine.holder == job.execution_id
        assert self.workers[0].restarted(job, "checkpoint_damaged") is holds
        if holds and mine.checkpoint == job.checkpoint.step:
            mine.checkpoint = 0

    @rule(job=claims, outcome=st.sampled_from(OUTCOMES))
    def finish(self, job: ClaimedJob, outcome: Outcome) -> None:
        mine = self.expected[job.id]
        holds = mine.holder == job.execution_id
        done_before = mine.status.is_terminal and mine.last == job.execution_id
        assert self.workers[0].finish(job, outcome) is (holds or done_before)
        if holds:
            mine.end(outcome.status, job.execution_id)
            mine.book(outcome.usage.steps)

    @rule(job=claims, refund=st.booleans())
    def requeue(self, job: ClaimedJob, refund: bool) -> None:
        mine = self.expected[job.id]
        holds = mine.holder == job.execution_id
        accepted = self.workers[1].requeue(job, "drain", refund, Usage(steps=1))
        assert accepted is (holds or mine.last == job.execution_id)
        if holds:
            mine.put_back(job.execution_id, refund)
            mine.book(1)

    @rule(job_id=ids)
    def cancel(self, job_id: str) -> None:
        mine = self.expected[job_id]
        record = self.runner.run(self.store.cancel(job_id))
        if mine.status is Status.QUEUED:
            mine.end(Status.CANCELLED, "")
        mine.cancel = mine.cancel or mine.status is Status.RUNNING
        assert record.status is mine.status

    @rule(job=claims)
    def lapse_and_reap(self, job: ClaimedJob) -> None:
        mine = self.expected[job.id]
        holds = mine.holder == job.execution_id
        member = f"{job.id}:{job.execution_id}"
        self.redis.set("denoised:reap_from", 0)
        moved = self.redis.zadd("denoised:wip", {member: 1}, xx=True, ch=True)
        assert moved == int(holds)
        report = self.keeper.run_once()
        if holds:
            mine.put_back("", refund=False)
        touched = {*report.requeued, *report.failed, *report.cancelled}
        assert touched == ({job.id} if holds else set())

    @precondition(lambda self: any(j.status.is_terminal for j in self.expected.values()))
    @rule(job_id=consumes(ids))
    def delete(self, job_id: str) -> None:
        if not self.expected[job_id].status.is_terminal:
            return
        self.runner.run(self.store.delete(job_id))
        assert self.redis.keys(f"*{job_id}*") == []
        # Zombies of a deleted job are fenced off too.
        self.expected[job_id] = Expected(Status.CANCELLED, last="deleted", seen=[])

    @invariant()
    def redis_agrees(self) -> None:
        held = set()
        for job_id, mine in self.expected.items():
            if mine.last == "deleted":
                continue
            record = self.runner.run(self.store.get(job_id))
            assert record.status is mine.status
            assert record.attempt == mine.attempt <= MAX_ATTEMPTS
            assert record.usage.steps == mine.steps
            assert (record.error is not None) == (record.status in _WITH_ERROR)
            kinds = [entry[b"type"] for _, entry in self.redis.xrange(f"denoised:ev:{job_id}")]
            endings = [kind for kind in kinds if kind in TERMINAL]
            assert endings == [f"job.{status.value}".encode() for status in mine.seen]
            assert len(endings) == int(mine.status.is_terminal)
            results = self.redis.xlen(f"rq:results:{job_id}")
            assert results == int(mine.status in (Status.SUCCEEDED, Status.FAILED))
            if mine.holder is not None:
                held.add(f"{job_id}:{mine.holder}".encode())
        assert set(self.redis.zrange("denoised:wip", 0, -1)) == held
        stats = self.runner.run(self.store.stats())
        count = [job.status for job in self.expected.values()].count
        assert (stats.queued, stats.running) == (count(Status.QUEUED), count(Status.RUNNING))


_WITH_ERROR = (Status.FAILED, Status.CANCELLED)


def test_redis_agrees_with_the_model_whatever_happens(
    redis_client: Redis, make_settings: Callable[..., Settings], keeper: Keeper
) -> None:
    Lifecycle.redis, Lifecycle.keeper = redis_client, keeper
    Lifecycle.settings = make_settings(max_attempts=MAX_ATTEMPTS)
    run_state_machine_as_test(
        Lifecycle,
        settings=hypothesis_settings(
            max_examples=25,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
