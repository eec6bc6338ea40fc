"""A newcomer on its way to the step where its checkpoint stands, or what becomes of it instead.

What was read of the checkpoint comes in, as the state of a generation or as the exception that
prevented it. A checkpoint of no use costs the steps it stood for, never the job; one that cannot be
read just now sends the job to another worker, as long as there are attempts left.
"""

from __future__ import annotations

from functools import partial

import structlog

from workers.checkpoint_file import UNREADABLE, CheckpointUnusable
from workers.checkpoints import Checkpoints
from workers.member import Member
from workers.reading import State
from workers.sink import Sink
from workers.solo_stages import SoloStages

log = structlog.get_logger(__name__)


class Resuming:
    """Belongs to the engine's thread. The last of `max_attempts` goes on from zero if need be."""

    def __init__(
        self, sink: Sink, checkpoints: Checkpoints, solo: SoloStages, max_attempts: int
    ) -> None:
        self._sink = sink
        self._checkpoints = checkpoints
        self._solo = solo
        self._max_attempts = max_attempts

    def resume(self, member: Member, state: State | Exception) -> bool:
        """Move a newcomer to where its checkpoint stands, or leave it at its beginning.

        False when it has been handed back: what could not be read now may be read later, or by
        another worker.
        """
        if isinstance(state, Exception):
            error: Exception | None = state
        else:
            resume = partial(self._checkpoints.resume, member, state)
            error = self._solo.with_room(member, resume)
        if error is None:
            return True
        job, is_useless = member.job, isinstance(error, CheckpointUnusable)
        cause = error.cause if isinstance(error, CheckpointUnusable) else UNREADABLE
        log.warning("cannot resume", job=job.id, cause=cause, error=str(error))
        if is_useless or job.attempt >= self._max_attempts:
            self._sink.restarted(job, cause)
            return True
        # The attempt counts: with a refund this could go on for ever.
        self._sink.hand_back(job, cause, member.usage())
        return False
