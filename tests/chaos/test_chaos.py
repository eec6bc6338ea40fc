"""A minute of the chaos suite, and proof that it notices when a safeguard is gone."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.plan import WORKERS, Blow, Plan, PlannedJob, make_plan
from tests.chaos.run import LEASE_SECONDS, run_plan


def long_jobs(*blows: Blow) -> Plan:
    """Jobs that are longer than a lease, one for each worker, and what falls on them."""
    steps = {"prompt": "long", "num_inference_steps": 40, "step_seconds": 0.08}
    jobs = tuple(
        PlannedJob(number, 0.0, {**steps, "seed": number}, "standard", True)
        for number in range(len(WORKERS))
    )
    return Plan(seed=0, jobs=jobs, blows=blows)


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
    frozen = [Blow(2.0, "freeze", name, 2.5 * LEASE_SECONDS) for name in WORKERS[:2]]
    report = await run_plan(long_jobs(*frozen), tmp_path, sabotage="fence")
    assert report.findings.count("duplicated") > 0, report.details()
    assert report.findings.count("lost") == 0


async def test_without_the_reaper_the_jobs_of_killed_workers_are_lost(tmp_path: Path) -> None:
    killed = [Blow(2.0, "kill", name) for name in WORKERS]
    report = await run_plan(
        long_jobs(*killed), tmp_path, sabotage="reaper", patience_seconds=3 * LEASE_SECONDS
    )
    assert report.findings.count("lost") > 0, report.details()
    assert report.findings.count("duplicated") == 0


async def test_without_the_checkpoint_fence_an_ended_job_points_at_a_checkpoint(
    tmp_path: Path,
) -> None:
    # A checkpoint is on its slow way to the disk when its worker freezes. Before it gets there the
    # job has ended elsewhere.
    slow = Blow(0.0, "disk-slow", seconds=2.5, delay=1.0)
    frozen = [Blow(2.0, "freeze", name, 4.5 * LEASE_SECONDS) for name in WORKERS[:2]]
    report = await run_plan(long_jobs(slow, *frozen), tmp_path, sabotage="checkpoint-fence")
    assert any("points at a checkpoint" in line for line in report.findings.lines())
    assert report.findings.count("lost") == report.findings.count("duplicated") == 0
