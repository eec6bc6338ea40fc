"""Who must have a worker to itself: a job that has cost workers before.

A job that kills its worker takes those along that it was in memory with; back at the front of their
queues they would meet again and again, until all of them had used their attempts up. So a job that
has lost its worker twice, or makes its last attempt, runs alone: a sound one comes through whatever
it had to do with before, and a poisonous one harms nobody any more.
"""

from __future__ import annotations

from collections.abc import Iterable

from jobs.types import ClaimedJob

SHARED_ATTEMPTS = 2
"""A worker that dies is mostly no fault of its jobs, so these are made in company."""


def must_be_alone(job: ClaimedJob, max_attempts: int) -> bool:
    """Whether `job`, of which `max_attempts` may be made, is under suspicion."""
    return job.attempt > min(SHARED_ATTEMPTS, max(max_attempts - 1, 1))


def anyone_alone(jobs: Iterable[ClaimedJob], max_attempts: int) -> bool:
    """Whether one of the jobs a worker holds bars it from taking more."""
    return any(must_be_alone(job, max_attempts) for job in jobs)
