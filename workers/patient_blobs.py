"""A blob store that waits out a disk which is full or away for a while.

Between the result writer and the store: a file that cannot be written is tried again, so that the
minutes a result has cost are not thrown away for a disk that somebody is just clearing. It runs in
the storing thread; steps go on meanwhile, until the worker holds as many results as it has room
for.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from workers.results import BlobSink

log = structlog.get_logger(__name__)

RETRY_SECONDS = 60.0
"""Longest wait for one file."""

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 2.0


class PatientBlobs:
    """Stores in `blobs`, trying each file for `retry_seconds`, at most `RETRY_SECONDS`."""

    def __init__(
        self,
        blobs: BlobSink,
        *,
        retry_seconds: float = RETRY_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self._blobs = blobs
        self._retry_seconds = min(retry_seconds, RETRY_SECONDS)
        self._clock = clock
        self._wait = wait

    def put(self, key: str, data: bytes) -> None:
        """Store `data` under `key`. Raises OSError when it still fails at the end of that time."""
        deadline = self._clock() + self._retry_seconds
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                self._blobs.put(key, data)
                return
            except OSError as error:
                if self._clock() + pause > deadline:
                    raise
                log.warning("cannot store, trying again", reason=error.strerror)
            self._wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
