"""Each check finds what it is for, and nothing where all is well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from redis import Redis

from tests.chaos.checks import ending_faults, event_faults, file_faults, key_faults, lease_faults
from tests.chaos.clients import Accepted
from tests.chaos.expected import picture
from tests.chaos.plan import PlannedJob
from tests.chaos.verdict import Findings, Report


def events(*types: str) -> list[dict[str, Any]]:
    return [{"type": f"job.{type_}"} for type_ in types]


@pytest.mark.parametrize(
    ("types", "heads"),
    [
        ("queued started progress succeeded", set()),
        ("queued started progress requeued started progress succeeded", set()),
        ("queued succeeded", set()),
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
    assert {key for key, _ in lease_faults(redis_client)} == {"denoised:wip", "fake:batch"}
    assert len(lease_faults(redis_client)) == 3


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
