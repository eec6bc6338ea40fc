"""Who must have a worker to itself, and when: a job that has cost workers before.

A job that kills its worker takes those along that it was in memory with; back at the front of their
queues they would meet again and again, until all of them had used their attempts up. So a job that
has lost its worker twice, or makes its last attempt, is a suspect and runs alone: a sound one comes
through whatever it had to do with before, and a poisonous one harms nobody any more.

1. A suspect and another job are never held together. Whichever has to go is handed back with a
   checkpoint and its attempt.
2. A newcomer that is a suspect has everybody leave who is as urgent or less. Where somebody is more
   urgent it stands aside: it goes back itself.
3. A suspect that runs gives way to what is more urgent, as soon as it has taken a step. While it
   runs nothing else is claimed.
4. Ageing: a suspect stands aside for the allowance of its class, the time for which the queue, too,
   lets more urgent jobs pass. While it does and something more urgent is held, neither its class
   nor a less urgent one is claimed. After that it takes its turn whoever is held.

So what is more urgent waits for a suspect until that has been read and encoded and has taken one
step. It waits so for one that finds the worker free, and has to leave for one that does not at most
once in the allowance. And a suspect that is claimed then gets on by a step at least.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable
from typing import Protocol

import structlog

from jobs.lease import ALLOWANCE_SECONDS
from jobs.types import ClaimedJob, Usage
from workers.member import RANKS

log = structlog.get_logger(__name__)

SHARED_ATTEMPTS = 2
"""A worker that dies is mostly no fault of its jobs, so these are made in company."""

MADE_ROOM = "made_room"
"""Why jobs go back to the queue that may not be held together with another."""

SAVE_SECONDS = 2.0
"""Who makes room has so long for a checkpoint; nobody extends the newcomer's lease meanwhile."""

MOST_ASIDE = 256
"""Suspects whose time aside is remembered, the newest; some end on other workers."""


class Held(Protocol):
    """What of `workers.engine.Engine` is needed here."""

    def held(self) -> tuple[ClaimedJob, ...]:
        """The jobs under lease."""

    def is_under_way(self, job: ClaimedJob) -> bool:
        """Whether a job has taken a step and has steps left."""

    def save(self, jobs: Collection[ClaimedJob], timeout: float) -> None:
        """Take checkpoints."""

    def evict(self, jobs: Collection[ClaimedJob] | None) -> list[tuple[ClaimedJob, Usage]]:
        """Drop jobs."""


class HandsBack(Protocol):
    """What of `jobs.lease.LeaseClient` is needed here."""

    def requeue(self, job: ClaimedJob, cause: str, refund_attempt: bool, usage: Usage) -> bool:
        """Hand a job back."""


def must_be_alone(job: ClaimedJob, max_attempts: int) -> bool:
    """Whether `job`, of which `max_attempts` may be made, is under suspicion."""
    return job.attempt > min(SHARED_ATTEMPTS, max(max_attempts - 1, 1))


class Isolation:
    """The rules for one worker's jobs. Belongs to the main thread; `clock` counts seconds."""

    def __init__(
        self,
        queues: HandsBack,
        max_attempts: int,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._queues = queues
        self._max_attempts = max_attempts
        self._clock = clock
        self._aside: dict[str, tuple[int, float]] = {}  # by job: its rank, and until when

    def open_ranks(self, engine: Held) -> int:
        """Classes that may be claimed beside what is held: every rank below the returned number."""
        held, now = engine.held(), self._clock()
        bars = [_rank(job) if engine.is_under_way(job) else 0 for job in self._suspects(held)]
        top = min(map(_rank, held), default=len(RANKS))
        bars += [rank for rank, until in self._aside.values() if top < rank and now < until]
        return min(bars, default=len(RANKS))

    def let_in(self, job: ClaimedJob, engine: Held) -> bool:
        """Whether a claimed job may be taken in: whom it may not meet has gone by then.

        If not, it has gone back itself. Raises StoreUnavailable.
        """
        held = engine.held()
        if must_be_alone(job, self._max_attempts):
            leaving = held
            _, until = self._aside.get(job.id, (0, math.inf))
            is_welcome = self._clock() >= until or all(_rank(job) <= _rank(h) for h in held)
            if not is_welcome:
                self._stand_aside(job)
        else:
            leaving = self._suspects(held)
            # What an unanswered claim brings late may be of any class.
            is_welcome = all(_rank(job) < _rank(suspect) for suspect in leaving)
        if not is_welcome:
            self._hand_back(job, Usage())
            return False
        self._aside.pop(job.id, None)
        for suspect in self._suspects(leaving):
            self._stand_aside(suspect)
        if leaving:
            engine.save(leaving, SAVE_SECONDS)
            for gone, usage in engine.evict(leaving):
                self._hand_back(gone, usage)
        return True

    def _hand_back(self, job: ClaimedJob, usage: Usage) -> None:
        self._queues.requeue(job, MADE_ROOM, True, usage)
        log.info("handed back", job=job.id, cause=MADE_ROOM)

    def _suspects(self, jobs: Iterable[ClaimedJob]) -> tuple[ClaimedJob, ...]:
        return tuple(job for job in jobs if must_be_alone(job, self._max_attempts))

    def _stand_aside(self, job: ClaimedJob) -> None:
        until = self._clock() + ALLOWANCE_SECONDS[job.priority]
        self._aside.setdefault(job.id, (_rank(job), until))
        while len(self._aside) > MOST_ASIDE:
            del self._aside[next(iter(self._aside))]


def _rank(job: ClaimedJob) -> int:
    return RANKS[job.priority]
