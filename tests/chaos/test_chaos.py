"""A minute of the chaos suite, and proof that it notices when a safeguard is gone."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

from jobs.connections import connect
from tests.chaos.fleet import Fleet
from tests.chaos.launcher import slow_disk_file, syncs_file
from tests.chaos.plan import WORKERS, Plan, PlannedJob, make_plan
from tests.chaos.run import LEASE_SECONDS, run_plan

STEPS = 40


def long_jobs(count: int) -> Plan:
    """Jobs that are longer than a lease."""
    steps = {"prompt": "long", "num_inference_steps": STEPS, "step_seconds": 0.08}
    jobs = tuple(
        PlannedJob(number, 0.0, {**steps, "seed": number}, "standard", True)
        for number in range(count)
    )
    return Plan(seed=0, jobs=jobs)


async def busy_worker(fleet: Fleet) -> tuple[str, str]:
    """Key of a job in the midst of its steps, and the place of the worker that holds it."""
    while True:
        with connect(fleet.redis.url) as redis:
            for key in redis.scan_iter("rq:job:*"):
                status, step, worker = redis.hmget(key, "status", "step", "worker_name")
                if status == b"started" and 5 <= int(step) < STEPS - 10:
                    pid = int(worker.split(b".")[-2])
                    return key.decode(), next(n for n in WORKERS if pid_of(fleet, n) == pid)
        await asyncio.sleep(0.02)


async def ended(fleet: Fleet, key: str) -> None:
    with connect(fleet.redis.url) as redis:
        while redis.hget(key, "status") in (b"queued", b"started"):
            await asyncio.sleep(0.02)


def pid_of(fleet: Fleet, name: str) -> int:
    process = fleet.members[name].process
    assert process is not None
    assert process.pid is not None
    return process.pid


async def freeze_a_worker(fleet: Fleet) -> None:
    """It comes back when its job has ended elsewhere."""
    job, name = await busy_worker(fleet)
    await fleet.send(name, signal.SIGSTOP)
    await ended(fleet, job)
    await fleet.send(name, signal.SIGCONT)


async def kill_all_workers(fleet: Fleet) -> None:
    await busy_worker(fleet)
    for name in WORKERS:
        await fleet.send(name, signal.SIGKILL)


async def freeze_a_worker_at_a_checkpoint(fleet: Fleet) -> None:
    """As `freeze_a_worker`, and meanwhile a checkpoint of the job is on its way to the disk."""
    slow = slow_disk_file(fleet.control)
    slow.write_text("1.0")
    while True:
        job, name = await busy_worker(fleet)
        syncing = syncs_file(fleet.control, pid_of(fleet, name))
        if syncing.exists():
            await fleet.send(name, signal.SIGSTOP)
            await asyncio.sleep(0.05)
            if syncing.exists():
                break
            await fleet.send(name, signal.SIGCONT)
        await asyncio.sleep(0.02)
    slow.unlink()
    await ended(fleet, job)
    await fleet.send(name, signal.SIGCONT)


async def test_nothing_is_lost_doubled_or_wrong_while_everything_dies(tmp_path: Path) -> None:
    plan = make_plan(
        4,
        jobs=100,
        kills=10,
        outages=3,
        seconds_per_kill=2.0,
        outage_scale=0.1,
        lease_seconds=LEASE_SECONDS,
    )
    report = await run_plan(plan, tmp_path)
    assert report.findings.lines() == []
    assert report.summary() == (
        "chaos: 100 jobs, 10 kills, 3 outages, seed 4: 0 lost, 0 duplicated, 0 wrong"
    )


async def test_without_the_fence_a_frozen_worker_ends_a_job_twice(tmp_path: Path) -> None:
    report = await run_plan(long_jobs(2), tmp_path, sabotage="fence", strike=freeze_a_worker)
    assert report.findings.count("duplicated") > 0, report.details()
    assert report.findings.count("lost") == 0


async def test_without_the_reaper_the_jobs_of_killed_workers_are_lost(tmp_path: Path) -> None:
    report = await run_plan(
        long_jobs(3),
        tmp_path,
        sabotage="reaper",
        strike=kill_all_workers,
        patience_seconds=3 * LEASE_SECONDS,
    )
    assert report.findings.count("lost") > 0, report.details()
    assert report.findings.count("duplicated") == 0


async def test_without_the_checkpoint_fence_an_ended_job_points_at_a_checkpoint(
    tmp_path: Path,
) -> None:
    report = await run_plan(
        long_jobs(1),
        tmp_path,
        sabotage="checkpoint-fence",
        strike=freeze_a_worker_at_a_checkpoint,
    )
    assert any("points at a checkpoint" in line for line in report.findings.lines())
    assert report.findings.count("lost") == report.findings.count("duplicated") == 0
