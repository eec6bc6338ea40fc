"""Reports that do not hold up the GPU while Redis is away.

Between the engine and the lease client: a report that cannot be delivered is answered with
`CONTINUE`, so that steps go on over a restart of Redis; only results wait for it. A lease may lapse
meanwhile and the job start elsewhere, but then the fence refuses this worker's result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import structlog

from jobs.errors import StoreUnavailable
from jobs.lease import RETRY_SECONDS, LeaseClient
from jobs.types import ClaimedJob, Outcome, Progress, Usage, Verdict
from workers.heartbeat import Pulse

log = structlog.get_logger(__name__)

PAUSE_SECONDS = 0.5
"""Between two attempts to reach a Redis that is away."""


class SteadySink:
    """The engine's `Sink` over a lease client. Belongs to the main thread."""

    def __init__(
        self, lease: LeaseClient, pulse: Pulse, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._lease = lease
        self._pulse = pulse
        self._clock = clock
        self._away_since: float | None = None
        self._next_try = 0.0

    @property
    def is_away(self) -> bool:
        """True while the last report could not be delivered."""
        return self._away_since is not None

    def report(self, updates: Sequence[Progress]) -> list[Verdict]:
        """Deliver the updates, or go on without.

        Raises StoreUnavailable once Redis has been away for a minute.
        """
        if self._away_since is not None and self._clock() < self._next_try:
            return [Verdict.CONTINUE] * len(updates)
        try:
            verdicts = self._lease.report(updates, retry_seconds=0)
        except StoreUnavailable as error:
            now = self._clock()
            if self._away_since is None:
                log.warning("Redis is away, computing on", error=str(error))
                self._away_since = now
            if now - self._away_since >= RETRY_SECONDS:
                self._away_since = None
                raise
            self._next_try = now + PAUSE_SECONDS
            return [Verdict.CONTINUE] * len(updates)
        if self._away_since is not None:
            log.info("Redis is back", away_seconds=round(self._clock() - self._away_since, 1))
            self._away_since = None
        return verdicts

    def restarted(self, job: ClaimedJob, cause: str) -> bool:
        """Tell that a job starts at step 0 after all. Waits like `finish`."""
        with self._pulse.waiting():
            return self._lease.restarted(job, cause)

    def hand_back(self, job: ClaimedJob, cause: str, usage: Usage) -> bool:
        """Leave a job to another attempt, this one counted. Waits like `finish`."""
        with self._pulse.waiting():
            return self._lease.requeue(job, cause, False, usage)

    def finish(self, job: ClaimedJob, outcome: Outcome) -> bool:
        """Settle a job, waiting up to a minute for Redis. Raises StoreUnavailable after that."""
        with self._pulse.waiting():
            settled = self._lease.finish(job, outcome)
        self._away_since = None
        return settled
