"""Each check finds what it is for, and nothing where all is well."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from redis import Redis

from tests.chaos.checks import (
    JobCheck,
    Resuming,
    ending_faults,
    event_faults,
    file_faults,
    key_faults,
    lease_faults,
    resume_faults,
)
from tests.chaos.clients import Accepted
from tests.chaos.ends import EXIT_BROKEN, FAILS, HANGS, End, end_faults
from tests.chaos.expected import picture
from tests.chaos.plan import PlannedJob
from tests.chaos.verdict import Findings, Report


def events(*types: str) -> list[dict[str, Any]]:
    loading = {"type": "job.progress", "status": "queued", "stage": "loading"}
    return [loading if type_ == "loading" else {"type": f"job.{type_}"} for type_ in types]


@pytest.mark.parametrize(
    ("types", "heads"),
    [
        ("queued started progress succeeded", set()),
        ("queued started progress requeued started progress succeeded", set()),
        ("queued succeeded", set()),
        ("queued loading loading started progress succeeded", set()),
        ("queued started requeued loading started succeeded", set()),
        ("queued started loading succeeded", {"wrong"}),
        ("queued started succeeded loading", {"wrong"}),
        ("queued started", {"lost"}),
        ("queued started succeeded succeeded", {"duplicated"}),
        ("queued started succeeded progress", {"wrong"}),
        ("queued started started succeeded", {"wrong"}),
        ("queued started requeued progress started succeeded", {"wrong"}),
        ("queued requeued started succeeded", {"wrong"}),
        ("started succeeded", {"wrong"}),
        ("queued started failed", {"wrong"}),
    ],
)
def test_events_out_of_order_are_found(types: str, heads: set[str]) -> None:
    assert {head for head, _ in event_faults(events(*types.split()), "succeeded")} == heads


def record(status: str, code: str | None = None, steps: int = 4) -> dict[str, Any]:
    return {
        "status": status,
        "error": code and {"code": code, "message": "m"},
        "attempt": 1,
        "usage": {"steps": steps, "resumed_steps": 0},
        "input": {"num_inference_steps": 4},
    }


@pytest.mark.parametrize(
    ("ended", "ending", "cancel_asked", "heads"),
    [
        (record("succeeded"), "succeeded", False, []),
        (record("succeeded"), "succeeded", True, []),
        (record("cancelled", "cancelled"), "succeeded", True, []),
        (record("cancelled", "cancelled"), "succeeded", False, ["wrong"]),
        (record("failed", "worker_lost"), "worker_lost", False, []),
        (record("failed", "worker_lost"), "succeeded", False, ["lost"]),
        (record("failed", "internal"), "succeeded", False, ["wrong"]),
        (record("succeeded"), "internal", False, ["wrong"]),
        (record("succeeded", steps=3), "succeeded", False, ["wrong"]),
    ],
)
def test_an_end_that_was_not_planned_is_found(
    ended: dict[str, Any], ending: str, cancel_asked: bool, heads: list[str]
) -> None:
    planned = PlannedJob(0, 0.0, {}, "standard", False, ending)
    job = Accepted(planned, ["job_a"], cancel_asked)
    assert [head for head, _ in ending_faults(job, ended)] == heads


@pytest.mark.parametrize(
    ("deadline_seconds", "ended_after", "heads"),
    [(30.0, 30.5, []), (30.0, 29.5, ["wrong"]), (None, 30.5, ["wrong"])],
)
def test_a_job_stopped_before_its_deadline_or_without_one_is_found(
    deadline_seconds: float | None, ended_after: float, heads: list[str]
) -> None:
    ended = record("failed", "deadline_exceeded") | {
        "created_at": "2026-01-01T00:00:00Z",
        "finished_at": f"2026-01-01T00:00:{ended_after}00000Z",
    }
    planned = PlannedJob(0, 0.0, {}, "standard", False, deadline_seconds=30.0)
    job = Accepted(planned, ["job_a"], deadline_seconds=deadline_seconds)
    assert [head for head, _ in ending_faults(job, ended)] == heads


def interrupted(step: int, *others: dict[str, Any], reached: int = 30) -> list[dict[str, Any]]:
    """Events of a job that lost its worker and is to go on from `step`."""
    return [
        {"type": "job.started"},
        {"type": "job.progress", "progress": {"step": reached}},
        {"type": "job.requeued", "step": step},
        {"type": "job.started"},
        *others,
    ]


def resumed(steps: int) -> dict[str, Any]:
    return {
        "status": "succeeded",
        "usage": {"steps": 40, "resumed_steps": steps},
        "input": {"num_inference_steps": 40, "step_seconds": 0.1},
    }


def test_steps_that_a_checkpoint_had_and_were_taken_again_are_found() -> None:
    assert resume_faults(interrupted(20), resumed(20)) == []
    assert resume_faults(interrupted(0), resumed(0)) == []
    assert len(resume_faults(interrupted(20), resumed(0))) == 1
    assert len(resume_faults(interrupted(20), resumed(19))) == 1
    anew = {"type": "job.restarted", "cause": "checkpoint_missing"}
    assert resume_faults(interrupted(20, anew), resumed(0)) == [
        ("wrong", "it started anew: checkpoint_missing")
    ]


def test_checkpoints_that_never_save_anything_are_found() -> None:
    never, once, short = Resuming(), Resuming(), Resuming()
    for number in range(3):
        never.note(interrupted(0), resumed(0))
        once.note(interrupted(0), resumed(7 if number == 1 else 0))
        short.note(interrupted(0, reached=5), resumed(0))
    assert never.faults() == ["3 long jobs lost their workers, no step was saved"]
    assert once.faults() == short.faults() == []


KILLED, STOPPED = frozenset({signal.SIGKILL}), frozenset({signal.SIGTERM})


@pytest.mark.parametrize(
    ("end", "faults"),
    [
        (End("worker-0", -9, KILLED), 0),
        (End("keeper-0", -9, KILLED), 0),
        (End("worker-0", 0, STOPPED, seconds=9.0), 0),
        (End("keeper-0", -15, STOPPED, knew_how=False), 0),
        (End("api-0", -15, STOPPED), 0),
        (End("worker-0", 70, said=f"...\n{HANGS} seconds=12"), 0),
        (End("worker-0", 70, STOPPED, seconds=14.0, said=HANGS), 0),
        (End("worker-0", -9), 0),
        (End("worker-0", 0), 1),
        (End("worker-0", 1), 1),
        (End("worker-0", 70), 1),
        (End("worker-0", 70, STOPPED), 1),
        (End("worker-0", -9, STOPPED, seconds=30.0), 1),
        (End("keeper-0", -9), 1),
        (End("keeper-0", 70, said=HANGS), 1),
        (End("worker-0", -15, STOPPED), 1),
        (End("keeper-0", -15, STOPPED), 1),
        (End("api-0", -15), 1),
        (End("worker-0", 0, STOPPED, seconds=11.0), 1),
        (End("worker-0", -9, KILLED, said=FAILS), 1),
        (End("worker-0", 70, said=FAILS), 2),
    ],
)
def test_an_end_that_nothing_explains_is_found(end: End, faults: int) -> None:
    assert len(end_faults([end], hangs=1, crashes=1, stop_seconds=10.0)) == faults


def test_more_hangs_and_crashes_than_jobs_account_for_are_found() -> None:
    ends = [End("worker-0", EXIT_BROKEN, said=HANGS)] * 8 + [End("worker-1", -9)] * 8
    assert end_faults(ends, hangs=8, crashes=8, stop_seconds=10.0) == []
    assert end_faults(ends, hangs=7, crashes=8, stop_seconds=10.0) == [
        ("the workers", "8 hung, the jobs account for 7")
    ]
    assert end_faults(ends, hangs=8, crashes=0, stop_seconds=10.0) == [
        ("the workers", "8 crashed, the jobs account for 0")
    ]


class Run:
    """What a run left in Redis and what the API answers: one job done, one cancelled, all well.

    Stands in for the clients and for the files of an undisturbed run.
    """

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self.findings = Findings()
        done = PlannedJob(0, 0.0, {}, "standard", False, api_key=1)
        cancelled = PlannedJob(1, 0.0, {}, "standard", False)
        self.accepted = [Accepted(done, ["done"]), Accepted(cancelled, ["off"], True)]
        self.records = {"done": self._made("done", "succeeded"), "off": self._made("off")}
        self.answers = {("done", 0): (200, b"first"), ("done", 1): (200, b"second")}
        redis.xadd("rq:results:done", {"type": "1"})
        redis.zadd("denoised:jobs", {"off": 1})
        redis.zadd("denoised:jobs:key1", {"done": 1})

    def _made(self, id_: str, status: str = "cancelled") -> dict[str, Any]:
        for event in events("queued", "started", status):
            self.redis.xadd(f"denoised:ev:{id_}", {"data": json.dumps(event)})
        files = [{}, {}] if status == "succeeded" else []
        keys = [{"key": f"jobs/{id_}/{n}.png", "variants": ["t"]} for n in range(len(files))]
        self.redis.hset(f"rq:job:{id_}", "outputs", json.dumps(keys))
        sound = record(status, None if files else "cancelled")
        given = sound["input"] | {"step_seconds": 0.0}
        more = {"model": "fake", "priority": "standard", "deterministic": False, "outputs": files}
        return sound | more | {"input": given}

    def of(self, _job: object) -> list[bytes]:
        return [b"first", b"second"]

    async def insist(self, _method: str, path: str, api_key: int | None) -> httpx2.Response:
        id_, *output = path.removeprefix("/v1/jobs/").split("/outputs/")
        assert api_key == (1 if id_ == "done" else None)
        if output:
            status, content = self.answers.get((id_, int(output[0])), (404, b""))
            return httpx2.Response(status, content=content)
        if (found := self.records.get(id_)) is None:
            return httpx2.Response(404)
        return httpx2.Response(200, json=found)

    async def check(self) -> JobCheck:
        check = JobCheck(self.redis, self, self, Path("blobs"), self.findings, max_attempts=3)  # type: ignore[arg-type]
        await check.run()
        return check


SPOILED: dict[str, tuple[str, Callable[[Run], object]]] = {
    "outputs in another order": (
        "wrong",
        lambda run: run.answers.update({("done", 0): (200, b"second")}),
    ),
    "an output that is gone": ("lost", lambda run: run.answers.pop(("done", 1))),
    "one output too few": ("wrong", lambda run: run.records["done"]["outputs"].pop()),
    "an output of a cancelled job": (
        "wrong",
        lambda run: run.answers.update({("off", 0): (200, b"first")}),
    ),
    "a cancelled job with outputs": (
        "wrong",
        lambda run: run.records["off"]["outputs"].append({}),
    ),
    "a job that nobody knows": (
        "duplicated",
        lambda run: run.redis.zadd("denoised:jobs", {"x": 1}),
    ),
    "one below an API key": (
        "duplicated",
        lambda run: run.redis.zadd("denoised:jobs:key1", {"x": 1}),
    ),
    "a second id": ("duplicated", lambda run: run.accepted[0].ids.append("x")),
    "no record": ("lost", lambda run: run.records.pop("done")),
    "no end": ("lost", lambda run: run.records["done"].update(status="running")),
    "too many attempts": ("wrong", lambda run: run.records["done"].update(attempt=4)),
    "no result": ("lost", lambda run: run.redis.delete("rq:results:done")),
    "two results": ("duplicated", lambda run: run.redis.xadd("rq:results:done", {"type": "1"})),
    "a pointer": ("wrong", lambda run: run.redis.hset("rq:job:done", "checkpoint", "k")),
    "an event too many": (
        "wrong",
        lambda run: run.redis.xadd("denoised:ev:done", {"data": '{"type": "job.progress"}'}),
    ),
}


async def test_where_all_is_well_no_job_is_found_fault_with(redis_client: Redis) -> None:
    run = Run(redis_client)
    check = await run.check()
    assert run.findings.lines() == []
    assert check.endings == {"succeeded": 1, "cancelled": 1}
    assert check.files == {
        Path("blobs/jobs/done") / name for name in ("0.png", "0.t.jpg", "1.png", "1.t.jpg")
    }


@pytest.mark.parametrize("what", SPOILED)
async def test_a_job_that_is_not_as_promised_is_found(what: str, redis_client: Redis) -> None:
    run = Run(redis_client)
    head, spoil = SPOILED[what]
    spoil(run)
    await run.check()
    assert {found for found, *_ in run.findings.found} == {head}


def test_files_that_nobody_needs_and_needed_ones_that_are_gone_are_found(tmp_path: Path) -> None:
    needed = tmp_path / "jobs" / "a" / "b" / "0.png"
    assert file_faults(tmp_path, {needed}) == [("jobs/a/b/0.png", "is gone")]
    needed.parent.mkdir(parents=True)
    needed.touch()
    assert file_faults(tmp_path, {needed}) == []
    (needed.parent / "4.safetensors").touch()
    (tmp_path / "jobs" / ".x.part").touch()
    assert sorted(file_faults(tmp_path, {needed})) == [
        ("jobs/.x.part", "is left behind"),
        ("jobs/a/b/4.safetensors", "is left behind"),
    ]


def test_leases_and_waiting_entries_are_found(redis_client: Redis) -> None:
    assert lease_faults(redis_client) == []
    redis_client.sadd("denoised:queues", "fake:batch")
    redis_client.rpush("rq:queue:fake:batch", "job_a")
    redis_client.zadd("denoised:wip", {"job_b:1": 1})
    redis_client.zadd("rq:wip:fake:batch", {"job_b:1": 1})
    redis_client.sadd("denoised:lanes", "fake:batch@key1")
    redis_client.rpush("rq:queue:fake:batch@key1", "job_c")
    redis_client.sadd("denoised:held:key1", "job_d")
    redis_client.zadd("denoised:deadlines", {"job_e": 1})
    found = [key for key, _ in lease_faults(redis_client)]
    assert sorted(found) == [
        "denoised:deadlines",
        "denoised:held:key1",
        "denoised:wip",
        "fake:batch",
        "fake:batch",
        "fake:batch@key1",
    ]


def test_keys_that_outlive_their_jobs_are_found(redis_client: Redis) -> None:
    redis_client.sadd("denoised:queues", "fake:batch")
    redis_client.lpush("denoised:finishes", 1)
    redis_client.set("denoised:idem:a", 1, ex=100)
    redis_client.set("rq:worker:w", 1, ex=100)
    redis_client.sadd("rq:workers", "rq:worker:w")
    assert key_faults(redis_client) == []
    redis_client.set("rq:job:a", 1, ex=100)
    redis_client.xadd("denoised:ev:a", {"a": 1})
    redis_client.set("denoised:claim:a", 1)
    redis_client.sadd("rq:workers:fake:batch", "rq:worker:dead")
    assert {key for key, _ in key_faults(redis_client)} == {
        "rq:job:a",
        "denoised:ev:a",
        "denoised:claim:a",
        "rq:workers:fake:batch",
    }


def test_a_lost_a_doubled_and_a_swapped_step_would_show() -> None:
    given = {"seed": 3, "width": 64, "height": 32}
    pictures = [picture({**given, "num_inference_steps": n}, 0) for n in (4, 5, 6)]
    assert all(made.size == (64, 32) for made in pictures)
    assert len({np.asarray(made).tobytes() for made in pictures}) == 3


def test_the_summary_counts_jobs_and_not_findings() -> None:
    findings = Findings()
    findings.add("lost", "job 1", "a")
    findings.add("lost", "job 1", "b")
    findings.add("wrong", "job 2", "c")
    report = Report(7, "d", 2000, 200, 5, 600.0, findings)
    assert not report.is_clean
    assert report.summary() == (
        "chaos: 2000 jobs, 200 kills, 5 outages, seed 7: 1 lost, 0 duplicated, 1 wrong"
    )
