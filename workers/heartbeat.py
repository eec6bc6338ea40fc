"""The thread that keeps a worker's leases alive, and lets go when the worker hangs.

Every `heartbeat_seconds` it extends the leases of all jobs held, passes cancels and lost leases on
to the engine, and announces the worker. The main thread shows by its `Pulse` that it gets something
done; when it does not for `step_timeout_seconds` while holding jobs (a hung CUDA call, say), the
heartbeat gives the jobs back and ends the process, since nothing less stops such a call.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import structlog

from config.settings import Settings
from jobs.errors import StoreUnavailable
from jobs.types import ClaimedJob, Verdict
from jobs.worker_registry import WorkerInfo

log = structlog.get_logger(__name__)


class HeartbeatClient(Protocol):
    """What of `jobs.lease.LeaseClient` belongs to this thread."""

    def beat(self, jobs: Sequence[ClaimedJob]) -> list[Verdict]:
        """Extend leases; one verdict per job, in order."""

    def announce(self, info: WorkerInfo) -> None:
        """Tell the deployment about the worker."""


class Pulse:
    """When the main thread last got something done. Waiting for Redis counts as doing so."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._excused_until = 0.0

    def beat(self) -> None:
        """Something got done."""
        self._last = time.monotonic()

    @contextmanager
    def waiting(self, longest: float = math.inf) -> Iterator[None]:
        """Around calls that may take `longest` seconds without anything being wrong here."""
        self._excused_until = time.monotonic() + longest
        try:
            yield
        finally:
            self.beat()
            self._excused_until = 0.0

    @property
    def silent_seconds(self) -> float:
        """Seconds since anything got done."""
        now = time.monotonic()
        return 0.0 if now < self._excused_until else now - self._last


class Heartbeat(threading.Thread):
    """Runs from `start` to `stop`. `held` and `describe` are asked at every beat, `post` gets each
    verdict that is not to go on, `note_answer` is called after each beat that Redis has answered,
    `on_hang` is called once, with the jobs held, and should not return.
    """

    def __init__(
        self,
        client: HeartbeatClient,
        settings: Settings,
        pulse: Pulse,
        *,
        held: Callable[[], Sequence[ClaimedJob]],
        post: Callable[[ClaimedJob, Verdict], None],
        describe: Callable[[], WorkerInfo],
        note_answer: Callable[[], None],
        on_hang: Callable[[Sequence[ClaimedJob]], None],
    ) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self._client = client
        self._settings = settings
        self._pulse = pulse
        self._held = held
        self._post = post
        self._describe = describe
        self._note_answer = note_answer
        self._on_hang = on_hang
        self._wake = threading.Event()
        self._stopped = False

    def hurry(self) -> None:
        """Beat now: something changed that others should know."""
        self._wake.set()

    def stop(self) -> None:
        """End the thread after the beat in progress."""
        self._stopped = True
        self._wake.set()
        self.join(timeout=self._settings.heartbeat_seconds + 1.0)

    def run(self) -> None:
        """The loop of the thread."""
        while not self._stopped:
            jobs = self._held()
            if jobs and self._pulse.silent_seconds > self._settings.step_timeout_seconds:
                self._on_hang(jobs)
                return
            try:
                for job, verdict in zip(jobs, self._client.beat(jobs), strict=True):
                    if verdict is not Verdict.CONTINUE:
                        self._post(job, verdict)
                self._client.announce(self._describe())
                self._note_answer()
            except StoreUnavailable as error:
                log.warning("heartbeat could not reach Redis", error=str(error))
            except Exception:
                # Leases must go on being kept; the main thread fails by itself if this lasts.
                log.exception("heartbeat failed")
            self._wake.wait(self._settings.heartbeat_seconds)
            self._wake.clear()
