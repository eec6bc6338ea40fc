"""Verdicts on jobs that other threads deliver to the engine, and work that listens for them.

The heartbeat hears of a cancellation or a lost lease while the main thread computes. It posts the
verdict here; the engine obeys between steps, and long work looks in between two of its pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from jobs.types import ClaimedJob, Verdict
from models.errors import Cancelled
from models.pipeline import KeepGoing


class PostedVerdicts:
    """The newest verdict for each execution; `alive` is called at every look, and may raise."""

    def __init__(self, alive: Callable[[], None]) -> None:
        self._alive = alive
        self._posted: dict[str, Verdict] = {}

    def post(self, job: ClaimedJob, verdict: Verdict) -> None:
        """Leave a verdict, from any thread."""
        self._posted[job.execution_id] = verdict

    def take(self) -> Iterator[tuple[str, Verdict]]:
        """Execution ids with their verdicts, each once."""
        while self._posted:
            yield self._posted.popitem()

    def listener(self, jobs: Sequence[ClaimedJob]) -> KeepGoing:
        """For work that only `jobs` want: raises Cancelled once there is a verdict for each."""

        def look() -> None:
            self._alive()
            if all(job.execution_id in self._posted for job in jobs):
                raise Cancelled

        return look
