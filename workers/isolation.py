"""Who must have a worker to itself: a job that has cost workers before, at its last attempt.

A job that kills its worker takes those along that it was in memory with; back at the front of their
queues they would meet again and again, until all of them had used their attempts up. So the last
attempt is made alone: a sound job comes through it, whatever it had to do with before, and a
poisonous one harms nobody.
"""

from __future__ import annotations

from collections.abc import Iterable

from jobs.types import ClaimedJob


def must_be_alone(job: ClaimedJob, max_attempts: int) -> bool:
    """Whether `job` has lost all attempts but this one of `max_attempts`."""
    return job.attempt > 1 and job.attempt >= max_attempts


def anyone_alone(jobs: Iterable[ClaimedJob], max_attempts: int) -> bool:
    """Whether one of the jobs a worker holds bars it from taking more."""
    return any(must_be_alone(job, max_attempts) for job in jobs)
