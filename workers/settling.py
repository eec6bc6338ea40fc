"""Outcomes on their way to the job layer.

A job that has ended is told to the sink at once. While that cannot be, the outcome stays here, so
that the steps of others do not wait for it, and is offered again between two turns.
"""

from __future__ import annotations

from collections.abc import Iterator

import structlog

from jobs.types import Outcome
from workers.checkpoints import Checkpoints
from workers.member import Member
from workers.sink import Sink

log = structlog.get_logger(__name__)


class Settling:
    """First in, first out. The jobs are held, but there is nothing left to compute for them."""

    def __init__(self, sink: Sink, checkpoints: Checkpoints) -> None:
        self._sink = sink
        self._checkpoints = checkpoints
        self._outcomes: dict[Member, Outcome] = {}

    @property
    def members(self) -> list[Member]:
        """Whose outcomes have not been told yet, the first to end first."""
        return [*self._outcomes]

    def put(self, member: Member, outcome: Outcome) -> None:
        """Take in the outcome of a job; from now on nothing else can become of it here."""
        self._outcomes[member] = outcome

    def tell(self) -> Iterator[Member]:
        """Those that are held no longer: the sink takes their outcomes now, or wants none.

        Raises what the sink does; what has not been told is still here then.
        """
        for member, outcome in [*self._outcomes.items()]:
            is_ours = self._sink.finish(member.job, outcome)
            if is_ours is None:
                return
            del self._outcomes[member]
            if is_ours:
                self._checkpoints.discard(member.job)
            else:
                log.warning("fenced off, the job went on elsewhere", job=member.job.id)
            yield member

    def discard(self, member: Member) -> None:
        """Forget a job, if it is here."""
        self._outcomes.pop(member, None)
