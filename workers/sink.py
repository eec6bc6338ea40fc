"""What the engine wants of whoever keeps its jobs: take in reports and outcomes, give verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from jobs.types import ClaimedJob, Outcome, Progress, Usage, Verdict


class Sink(Protocol):
    """Where reports and outcomes go; `workers.steady_sink.SteadySink` is one."""

    def report(self, updates: Sequence[Progress]) -> list[Verdict]:
        """Pass on progress; returns one verdict per update, in order."""

    def restarted(self, job: ClaimedJob, cause: str) -> bool:
        """Tell that a job's checkpoint is of no use. False when it is no longer this worker's."""

    def hand_back(self, job: ClaimedJob, cause: str, usage: Usage) -> bool:
        """Leave a job to another attempt, this one counted. False when it is no longer ours."""

    def finish(self, job: ClaimedJob, outcome: Outcome) -> bool | None:
        """Settle a job. False when it is no longer this worker's; None to be asked again."""
