"""One denoise step of one batch, and what came of it for each member.

The engine says who steps together; here they are brought onto the device, stepped, timed, and paid
for by their share. A failure stays with the job that caused it: if a batch raises, its members are
tried one by one, and only those that fail alone have failed. Running out of memory also moves the
others out of the way and shrinks the batches to come. Nobody is told about any of this: the engine
settles what failed and reports what stepped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import structlog

from models.errors import Cancelled
from models.pipeline import Pipeline
from workers import metrics
from workers.batch_limits import BatchLimits
from workers.device import Device, is_out_of_memory
from workers.failures import attempt
from workers.member import Member
from workers.parking import Parking
from workers.posted_verdicts import PostedVerdicts

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Stepped:
    """What came of a batch: who took the step, who cannot go on and why, and the seconds it took.

    Whoever is in neither left the step unfinished: a verdict has been posted for it, or the worker
    is to leave.
    """

    members: Sequence[Member]
    failed: Sequence[tuple[Member, Exception]]
    seconds: float


class Stepping:
    """Takes steps on one device; `clock` counts seconds. One thread only."""

    def __init__(
        self,
        pipelines: Mapping[str, Pipeline],
        device: Device,
        limits: BatchLimits,
        parking: Parking,
        verdicts: PostedVerdicts,
        clock: Callable[[], float],
    ) -> None:
        self._pipelines = pipelines
        self._device = device
        self._limits = limits
        self._parking = parking
        self._verdicts = verdicts
        self._clock = clock

    def step(self, members: Sequence[Member]) -> Stepped:
        """One step of `members`, which share a batch key. Raises DeviceLost."""
        self._parking.settle(members)
        images = sum(m.num_images for m in members)
        started = self._clock()
        error = attempt(partial(self._advance, members))
        ended = self._clock()
        seconds = ended - started
        if isinstance(error, Cancelled):
            for member in members:
                member.device_seconds += seconds * member.num_images / images
            return Stepped((), (), seconds)
        if isinstance(error, Exception):
            return self._step_apart(members, images, error, seconds)
        model = members[0].job.model
        self._limits.observe(members[0].resident().batch_key, images, seconds)
        metrics.STEP_SECONDS.labels(model).observe(seconds)
        metrics.BATCH_SIZE.labels(model).observe(images)
        for member in members:
            member.count_step(started, ended, images=images)
        return Stepped(members, (), seconds)

    def _advance(self, members: Sequence[Member]) -> None:
        keep_going = self._verdicts.listener([m.job for m in members])
        keep_going()
        self._parking.fetch(members)
        batch = [m.generation for m in members if m.generation is not None]
        pipeline = self._pipelines[members[0].job.model]
        pipeline.step(batch, keep_going)
        self._device.synchronize()

    def _step_apart(
        self, members: Sequence[Member], images: int, error: Exception, seconds: float
    ) -> Stepped:
        """After the batch raised `error`: step every member alone."""
        if is_out_of_memory(error):
            self._parking.clear(members)
            self._device.release_memory()
            self._limits.shrink(members[0].resident().batch_key, images)
        elif len(members) == 1:
            return Stepped((), [(members[0], error)], seconds)
        log.warning("batch failed, trying its members one by one", images=images, error=str(error))
        stepped, failed = [], []
        for member in members:
            if is_out_of_memory(error):
                self._parking.clear([member])
            started = self._clock()
            own_error = attempt(partial(self._advance, [member]))
            if isinstance(own_error, Cancelled):
                member.device_seconds += self._clock() - started
            elif isinstance(own_error, Exception):
                failed.append((member, own_error))
                self._device.release_memory()
            else:
                member.count_step(started, self._clock(), images=member.num_images)
                stepped.append(member)
        return Stepped(stepped, failed, seconds)
