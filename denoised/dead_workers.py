"""Tells the job layer of workers that have ended, so that no job waits for a lease to lapse.

The supervisor reports names as it collects its children. A thread of its own passes them on, since
Redis may be away: it tries for as long as the leases can last, after which the keeper has seen to
the jobs.
"""

from __future__ import annotations

import queue
import threading
import time

import structlog
from redis.exceptions import RedisError

from config.settings import Settings
from jobs.connections import connect
from jobs.dead_worker import take_back

log = structlog.get_logger(__name__)

PAUSE_SECONDS = 0.2


class DeadWorkers:
    """The reports of one supervisor. `settings.redis_url` must be set."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._reports: queue.SimpleQueue[tuple[str, float]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="dead-workers", daemon=True).start()

    def report(self, worker: str) -> None:
        """The process of the worker of this name has ended. Returns at once."""
        self._reports.put((worker, time.monotonic() + self._settings.lease_seconds))

    def _run(self) -> None:
        while True:
            self._take_back(*self._reports.get())

    def _take_back(self, worker: str, deadline: float) -> None:
        assert self._settings.redis_url is not None
        while True:
            try:
                with connect(self._settings.redis_url) as redis:
                    take_back(redis, self._settings, worker)
                return
            except RedisError as error:
                if time.monotonic() >= deadline:
                    log.warning("leaves the jobs of a dead worker to the keeper", error=str(error))
                    return
            time.sleep(PAUSE_SECONDS)
