"""Reports that do not hold up the GPU while Redis is away.

Between the engine and the lease client: a report that cannot be delivered is answered with
`CONTINUE`, so that steps go on over a restart of Redis; an outcome is left with the engine, to be
offered again. A lease may lapse meanwhile and the job start elsewhere, but then the fence refuses
this worker's result.

A Redis that is frozen or cut off holds up every call for the socket's timeout. The heartbeat can
afford that on its own thread: after such a call the main thread mostly waits for its word.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import structlog

from jobs.errors import StoreUnavailable
from jobs.lease import RETRY_SECONDS, LeaseClient
from jobs.types import ClaimedJob, Outcome, Progress, Usage, Verdict
from workers.heartbeat import Pulse

log = structlog.get_logger(__name__)

T = TypeVar("T")

PAUSE_SECONDS = 0.5
"""Between two attempts to reach a Redis that is away, at least."""

PAUSE_PER_SECOND = 10.0
"""The pause is also so many times as long as the attempt before it: nine tenths of the time are
left for steps even if the heartbeat hears nothing."""


class SteadySink:
    """The engine's `Sink` over a lease client. All but `note_answer` belongs to the main thread."""

    def __init__(
        self, lease: LeaseClient, pulse: Pulse, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._lease = lease
        self._pulse = pulse
        self._clock = clock
        self._away_since: float | None = None
        self._failed_at = -math.inf
        self._answered_at = -math.inf
        self._next_try = -math.inf

    @property
    def is_away(self) -> bool:
        """True while the last call could not be delivered."""
        return self._away_since is not None

    def note_answer(self) -> None:
        """Redis has just answered another thread: worth an attempt at once."""
        self._answered_at = self._clock()

    def note_failure(self, error: StoreUnavailable, *, asked_at: float) -> None:
        """Redis did not take what it was asked at `asked_at`, by this sink or past it.

        Raises `error` once Redis has been away for a minute.
        """
        now = self._failed_at = self._clock()
        if self._away_since is None:
            log.warning("Redis is away, computing on", error=str(error))
            self._away_since = now
        gives_up_at = self._away_since + RETRY_SECONDS
        if now >= gives_up_at:
            self._away_since = None
            raise error
        pause = max(PAUSE_SECONDS, PAUSE_PER_SECOND * (now - asked_at))
        self._next_try = min(now + pause, gives_up_at)

    def report(self, updates: Sequence[Progress]) -> list[Verdict]:
        """Deliver the updates, or go on without.

        Raises StoreUnavailable once Redis has been away for a minute.
        """
        verdicts = self._ask(lambda: self._lease.report(updates, retry_seconds=0))
        return [Verdict.CONTINUE] * len(updates) if verdicts is None else verdicts

    def restarted(self, job: ClaimedJob, cause: str) -> bool:
        """Tell that a job starts at step 0 after all, waiting up to a minute for Redis.

        Raises StoreUnavailable after that.
        """
        with self._pulse.waiting():
            return self._lease.restarted(job, cause)

    def hand_back(self, job: ClaimedJob, cause: str, usage: Usage) -> bool:
        """Leave a job to another attempt, this one counted. Waits like `restarted`."""
        with self._pulse.waiting():
            return self._lease.requeue(job, cause, False, usage)

    def finish(self, job: ClaimedJob, outcome: Outcome) -> bool | None:
        """Settle a job, or leave that for later: None while Redis is away.

        Raises StoreUnavailable once that has been a minute.
        """
        with self._pulse.waiting():
            return self._ask(lambda: self._lease.finish(job, outcome, retry_seconds=0))

    def _ask(self, call: Callable[[], T]) -> T | None:
        """What Redis answers to `call`; None while it is away or may be assumed to be."""
        asked_at = self._clock()
        is_news = self._answered_at > self._failed_at or asked_at >= self._next_try
        if self._away_since is not None and not is_news:
            return None
        try:
            answer = call()
        except StoreUnavailable as error:
            self.note_failure(error, asked_at=asked_at)
            return None
        if self._away_since is not None:
            log.info("Redis is back", away_seconds=round(self._clock() - self._away_since, 1))
            self._away_since = None
        return answer
