"""The embedded Redis of a data directory under supervision: brought back on its files when it dies.

What was accepted lies on disk, so nothing that keeps it from starting is a reason to give up while
others are served: the disk may be full for a moment, the machine out of memory. It is tried again
with growing pauses, and never waited for, since a large file takes minutes to load.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import structlog

from denoised.child import HEALTHY_SECONDS, pause_before_restart
from denoised.errors import CommandError
from jobs.embedded_redis import EmbeddedRedis, RedisUnavailable

log = structlog.get_logger(__name__)


class OwnRedis:
    """A context manager: the server, at `url`, is begun with it and ended at its end.

    `restart_at`, on the supervisor's clock, is when to call `revive` again, None while it runs.
    Raises CommandError when it cannot be started in the first place.
    """

    def __init__(self, directory: Path) -> None:
        self.restart_at: float | None = None
        self._directory = directory
        self._began_at = -math.inf
        self._quick_deaths = 0
        try:
            self._server = EmbeddedRedis.begin(directory)
        except RedisUnavailable as error:
            raise CommandError(str(error)) from None
        self.url = self._server.url

    def __enter__(self) -> OwnRedis:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop()

    def wait_until_ready(self, should_stop: Callable[[], bool]) -> bool:
        """Wait for the first answer; False if told to stop meanwhile. Raises CommandError."""
        try:
            return self._server.wait_until_ready(should_stop)
        except RedisUnavailable as error:
            raise CommandError(str(error)) from None

    def revive(self, now: float) -> None:
        """Start it again if it has ended; its clients ride out the gap."""
        if self._server.alive:
            return
        if self.restart_at is None:
            long_life = now - self._began_at >= HEALTHY_SECONDS
            self._quick_deaths = 0 if long_life else self._quick_deaths + 1
            pause = pause_before_restart(self._quick_deaths) if self._quick_deaths else 0.0
            self.restart_at = now + pause
            log.warning(
                "the embedded Redis ended, starting it again", pause_seconds=round(pause, 1)
            )
        if now < self.restart_at:
            return
        self._began_at, self.restart_at = now, None
        try:
            self._server = EmbeddedRedis.begin(self._directory, self._server.program)
        except RedisUnavailable as error:
            self._quick_deaths += 1
            self.restart_at = now + pause_before_restart(self._quick_deaths)
            log.error("the embedded Redis cannot be started", reason=str(error))
