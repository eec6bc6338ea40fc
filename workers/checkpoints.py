"""Checkpoints of running jobs: when one is due, its way to the disk, and the way back.

Between two steps the engine offers every job that has moved. If a checkpoint is due the state is
copied, which is all that happens on the step path; the background makes a file of it, stores it,
points the job at it and removes what it replaces. A disk that is full, or a Redis that is away,
costs the checkpoint and not the job. When a job is claimed that has a checkpoint, `fetch` reads it
beside the steps of others, and `resume` puts it into a generation prepared anew.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Protocol

import structlog

from jobs.checkpoints import checkpoint_key, is_checkpoint_of
from jobs.types import Checkpoint, ClaimedJob, Usage
from workers import metrics
from workers.background import Background
from workers.checkpoint_file import (
    FOREIGN,
    MISSING,
    CheckpointUnusable,
    facts_of,
    pack,
    unpack,
)
from workers.failures import attempt
from workers.member import Member

if TYPE_CHECKING:
    from torch import Tensor

log = structlog.get_logger(__name__)


class CheckpointBlobs(Protocol):
    """Where the files go; `jobs.blobs.FileBlobStore` is one."""

    def put(self, key: str, data: bytes) -> object:
        """Store `data` under `key`. Raises OSError when that fails."""

    def read(self, key: str) -> bytes:
        """The whole blob. Raises FileNotFoundError, or another OSError."""

    def delete(self, key: str) -> None:
        """Remove a blob; one that is not there is fine."""


class Recorder(Protocol):
    """Who moves a job's pointer; `jobs.lease.LeaseClient` is one."""

    def record_checkpoint(self, job: ClaimedJob, checkpoint: Checkpoint, usage: Usage) -> bool:
        """Point the job at `checkpoint`. False when it may not, or points at a newer one."""


class Identity(Protocol):
    """Which weights a model is; `workers.recipe.Recipes` is one."""

    def identity(self, job: ClaimedJob) -> dict[str, str]:
        """What has to be equal where a checkpoint of `job` is resumed."""


@dataclass(eq=False)
class _Trail:
    """What one execution knows of its job's checkpoints: blobs that exist, the newest taken."""

    keys: list[str] = field(default_factory=list)
    step: int = 0
    taken_at: float = math.inf
    pending: Future[None] | None = None

    @property
    def is_busy(self) -> bool:
        return self.pending is not None and not self.pending.done()


class Checkpoints:
    """All checkpoints of one worker. Methods but `fetch` belong to the engine's thread.

    `models` says of each model which weights it is; `every_seconds` is the least time between two
    checkpoints of a job, and a job that will end within it gets none; times are seconds of the
    engine's clock.
    """

    def __init__(
        self,
        blobs: CheckpointBlobs,
        recorder: Recorder,
        models: Mapping[str, Identity],
        background: Background,
        *,
        every_seconds: float,
    ) -> None:
        self._blobs = blobs
        self._recorder = recorder
        self._models = models
        self._background = background
        self._every_seconds = every_seconds
        self._trails: dict[str, _Trail] = {}

    def fetch(self, job: ClaimedJob) -> dict[str, Tensor] | None:
        """The state in the job's checkpoint, if it has one; from any thread.

        Raises CheckpointUnusable when it is of no use, and what reading raises when it may yet be.
        """
        checkpoint = job.checkpoint
        if checkpoint is None:
            return None
        if not is_checkpoint_of(job.id, checkpoint.key):
            raise CheckpointUnusable(FOREIGN, f"{checkpoint.key!r} is not the job's")
        try:
            data = self._blobs.read(checkpoint.key)
        except FileNotFoundError as error:
            raise CheckpointUnusable(MISSING, "there is no such file") from error
        return unpack(data, checkpoint.sha256, self._facts(job), checkpoint.step)

    def resume(self, member: Member, state: Mapping[str, Tensor]) -> None:
        """Move a freshly prepared member to where the `state` of its job's checkpoint stands.

        Raises CheckpointUnusable, or what running out of memory does; the generation is still at
        its beginning then.
        """
        job, generation = member.job, member.generation
        assert job.checkpoint is not None
        assert generation is not None
        try:
            generation.load_state_dict(state)
        except ValueError as error:
            raise CheckpointUnusable(FOREIGN, str(error)) from error
        member.resumed_steps = self._trail(job).step = job.checkpoint.step
        metrics.RESUMED_STEPS.inc(job.checkpoint.step)

    def begin(self, member: Member, now: float) -> None:
        """The job is about to step: from `now` on it has something to lose."""
        # Not from the end of the first step: where one takes minutes, no attempt may get further.
        self._trail(member.job).taken_at = now

    def offer(self, member: Member, now: float, seconds_left: float | None) -> None:
        """Take a checkpoint if one is due: the job has just moved and has `seconds_left`.

        None for a job whose speed has not been measured, which gets none.
        """
        trail = self._trail(member.job)
        is_due = now - trail.taken_at >= self._every_seconds
        if is_due and (seconds_left or 0.0) > self._every_seconds and not trail.is_busy:
            trail.taken_at = now
            self._take(member, trail)

    def save(self, members: Sequence[Member], timeout: float) -> None:
        """Take checkpoints of all `members` that have moved since their last; wait for them.

        What is not stored and recorded after `timeout` seconds is not waited for.
        """
        for member in members:
            trail = self._trail(member.job)
            generation = member.generation
            if generation is not None and generation.step_index > trail.step:
                self._take(member, trail)
        trails = [self._trails.get(member.job.execution_id) for member in members]
        wait([t.pending for t in trails if t and t.pending], timeout=max(timeout, 0.0))

    def forget(self, job: ClaimedJob) -> None:
        """The job went on elsewhere, or will: its checkpoints are no longer this worker's."""
        self._trails.pop(job.execution_id, None)

    def discard(self, job: ClaimedJob) -> None:
        """The job has ended here: remove its checkpoints."""
        trail = self._trail(job)
        self.forget(job)
        if trail.keys or trail.pending is not None:
            # Behind what is still being written.
            self._background.submit(lambda: self._remove(trail.keys))

    def _trail(self, job: ClaimedJob) -> _Trail:
        trail = self._trails.get(job.execution_id)
        if trail is None:
            trail = self._trails[job.execution_id] = _Trail()
            if job.checkpoint is not None and is_checkpoint_of(job.id, job.checkpoint.key):
                trail.keys.append(job.checkpoint.key)
        return trail

    def _take(self, member: Member, trail: _Trail) -> None:
        generation = member.generation
        assert generation is not None
        started = time.monotonic()
        state = attempt(generation.state_dict)
        if isinstance(state, Exception):
            log.warning("checkpoint failed", job=member.job.id, error=str(state))
            return
        step = trail.step = generation.step_index
        store = partial(self._store, member.job, trail, state, step, member.usage())

        def write() -> None:
            stored = attempt(store)
            if isinstance(stored, Exception):
                log.warning("checkpoint failed", job=member.job.id, step=step, error=str(stored))
                # Nothing later may count on it.
                trail.step = 0
            else:
                metrics.CHECKPOINT_SECONDS.observe(time.monotonic() - started)

        trail.pending = self._background.submit(write)

    def _store(
        self, job: ClaimedJob, trail: _Trail, state: Mapping[str, Tensor], step: int, usage: Usage
    ) -> None:
        """In the background: file, disk, pointer, and away with what the pointer has left."""
        data = pack(state, self._facts(job), step)
        key = checkpoint_key(job.id, job.execution_id, step)
        self._blobs.put(key, data)
        if key not in trail.keys:  # it is when it was stored before and could not be recorded
            trail.keys.append(key)
        checkpoint = Checkpoint(key, step, sha256(data).hexdigest())
        # Fenced off, all stay: whoever goes on with the job may need one of them.
        if self._recorder.record_checkpoint(job, checkpoint, usage):
            self._remove([old for old in trail.keys if old != key])
            trail.keys[:] = [key]

    def _remove(self, keys: Sequence[str]) -> None:
        for key in keys:
            error = attempt(partial(self._blobs.delete, key))
            if isinstance(error, Exception):
                log.warning("checkpoint not removed", key=key, error=str(error))

    def _facts(self, job: ClaimedJob) -> dict[str, str]:
        return facts_of(job, self._models[job.model].identity(job))
