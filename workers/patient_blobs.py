"""Blob stores that wait out a disk which is full or away for a while.

Between the result writer and the store: a file that cannot be written is tried again, so that the
minutes a result has cost are not thrown away for a disk that somebody is just clearing. And between
the checkpoints and the store: one that cannot be read is tried again too, before hours of steps are
given up. Both happen in threads of their own; steps go on meanwhile, until the worker holds as many
jobs as it has room for.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import structlog

from workers.checkpoints import CheckpointBlobs
from workers.results import BlobSink

log = structlog.get_logger(__name__)

RETRY_SECONDS = 60.0
"""Longest wait for one file."""

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 2.0

T = TypeVar("T")


class Patience:
    """Tries for `retry_seconds`, at most `RETRY_SECONDS`. Holds nothing that changes."""

    def __init__(
        self,
        retry_seconds: float = RETRY_SECONDS,
        *,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self._retry_seconds = min(retry_seconds, RETRY_SECONDS)
        self._clock = clock
        self._wait = wait

    def with_retries(self, work: Callable[[], T], final: tuple[type[OSError], ...] = ()) -> T:
        """What `work` gives. Raises the OSError of its last try, and a `final` one at once."""
        deadline = self._clock() + self._retry_seconds
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                return work()
            except final:
                raise
            except OSError as error:
                if self._clock() + pause > deadline:
                    raise
                log.warning("the disk is in trouble, trying again", reason=error.strerror)
            self._wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


class PatientBlobs:
    """Stores in `blobs`, each file with `patience`."""

    def __init__(self, blobs: BlobSink, patience: Patience) -> None:
        self._blobs = blobs
        self._patience = patience

    def put(self, key: str, data: bytes) -> None:
        """Store `data` under `key`. Raises OSError when it still fails at the end of that time."""
        self._patience.with_retries(lambda: self._blobs.put(key, data))

    def delete_prefix(self, prefix: str) -> None:
        """Remove everything below `prefix`. Raises OSError at the first try."""
        self._blobs.delete_prefix(prefix)


class PatientReads:
    """Reads from `blobs` with `patience`. It writes and removes at the first try or not at all: a
    checkpoint is not worth waiting for, since the next one comes.
    """

    def __init__(self, blobs: CheckpointBlobs, patience: Patience) -> None:
        self._blobs = blobs
        self._patience = patience

    def put(self, key: str, data: bytes) -> None:
        """Store `data` under `key`. Raises OSError."""
        self._blobs.put(key, data)

    def read(self, key: str) -> bytes:
        """The whole blob. Raises FileNotFoundError at once, another OSError after that time."""
        return self._patience.with_retries(
            lambda: self._blobs.read(key), final=(FileNotFoundError,)
        )

    def delete(self, key: str) -> None:
        """Remove a blob; one that is not there is fine."""
        self._blobs.delete(key)
