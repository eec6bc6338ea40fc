"""The step engine: resident models and the jobs in memory, advanced one batch at a time.

A job comes in by `admit` (its inputs are read and its prompts encoded at once); every `turn` then
takes one denoise step of the batch that the scheduler picks, reports it in one round trip, and
decodes at most one finished job, so that no queue of newcomers or of results holds up the steps.
What is decoded is stored in the background and settled at a later turn. The engine knows no Redis:
reports go to a `Sink`, media to a `StoringQueue`, states of long jobs to `Checkpoints`.

A failure stays with the job that caused it. If a batch raises, its members are tried one by one and
only those that fail alone are failed; running out of memory also shrinks the batches to come.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import structlog

from jobs.types import ClaimedJob, ModelLoad, Outcome, Stage, Status, Usage, Verdict
from models.errors import Cancelled
from models.pipeline import Clip, Generation, Pipeline, Request
from workers import metrics
from workers.batch_limits import BatchLimits
from workers.checkpoints import Checkpoints
from workers.device import Device, is_out_of_memory
from workers.failures import attempt, cancelled, failure_of
from workers.finish_speeds import FinishSpeeds
from workers.inputs import InputReader
from workers.member import RANKS, Member, seconds_left
from workers.parking import Parking
from workers.posted_verdicts import PostedVerdicts
from workers.previews import Previews
from workers.roster import Roster
from workers.scheduler import leader, open_ranks, schedule
from workers.sink import Sink
from workers.storing import StoringQueue

if TYPE_CHECKING:
    from PIL.Image import Image

log = structlog.get_logger(__name__)

T = TypeVar("T")


class Engine:
    """Everything resident on one device. All methods but `held` and `post` run on one thread.

    `capacity` bounds the images in memory (a job of several images may exceed it by those);
    at least `preview_seconds` lie between two previews of a job; generations that wait may fill
    `waiting_bytes` of the device; `alive` is called after pieces of work; `clock` counts seconds.
    """

    def __init__(
        self,
        pipelines: Mapping[str, Pipeline],
        sink: Sink,
        inputs: InputReader,
        storing: StoringQueue,
        checkpoints: Checkpoints,
        device: Device,
        limits: BatchLimits,
        *,
        capacity: int,
        preview_seconds: float,
        alive: Callable[[], None] = lambda: None,
        waiting_bytes: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pipelines = pipelines
        self._sink = sink
        self._inputs = inputs
        self._storing = storing
        self._checkpoints = checkpoints
        self._device = device
        self._limits = limits
        self._capacity = capacity
        self._parking = Parking(pipelines, device, waiting_bytes)
        self._previews = Previews(pipelines, preview_seconds)
        self._verdicts = PostedVerdicts(alive)
        self._clock = clock
        self._is_draining = False
        self._members: dict[str, Member] = {}
        self._stepping, self._finished = Roster(), Roster()
        self._held: tuple[ClaimedJob, ...] = ()
        self._last_step_seconds = 0.0
        self._speeds = FinishSpeeds()

    @property
    def is_idle(self) -> bool:
        """True when no job is held."""
        return not self._members

    def held(self) -> tuple[ClaimedJob, ...]:
        """The jobs under lease here, a snapshot for any thread."""
        return self._held

    def post(self, job: ClaimedJob, verdict: Verdict) -> None:
        """Deliver a verdict from any thread; obeyed at the next step boundary or piece of work."""
        self._verdicts.post(job, verdict)

    def open_ranks(self) -> int:
        """Classes that may be claimed now: those whose rank is below the returned number."""
        ended = self._finished.num_images + self._storing.num_images
        return open_ranks(
            self._stepping,
            self._limits,
            capacity=self._capacity - ended,
            num_ranks=len(RANKS),
        )

    def seconds_left(self) -> dict[str, float]:
        """Models with jobs here, each with how long its steps will take as far as measured."""
        return seconds_left(self._members.values())

    def expect(self, job: ClaimedJob, load: ModelLoad) -> None:
        """Take in a claimed job whose model is yet to be loaded; it is told about that."""
        self._report([self._take_in(job)], Stage.LOADING, load)

    def admit_expected(self) -> None:
        """Go on with those expected jobs that are still wanted: their model is resident now."""
        self._obey_posted()
        for member in [m for m in self._members.values() if m.stage is Stage.LOADING]:
            self._encode(member)

    def give_up_expected(self) -> list[tuple[ClaimedJob, Usage]]:
        """Drop the expected jobs, whose model cannot be loaded; returns them with their cost."""
        return self.evict([m.job for m in self._members.values() if m.stage is Stage.LOADING])

    def admit(self, job: ClaimedJob) -> None:
        """Take in a claimed job of a resident model, read its inputs and encode its prompts."""
        self._encode(self._take_in(job))

    def _take_in(self, job: ClaimedJob) -> Member:
        member = self._members[job.execution_id] = Member(job)
        self._note_held()
        return member

    def _encode(self, member: Member) -> None:
        job = member.job
        if not self._report([member], Stage.ENCODING):
            return
        begun = self._run(member, partial(self._prepare, member))
        if begun is not None:
            member.begin(*begun)
            if (cause := self._checkpoints.resume(member)) is not None:
                self._sink.restarted(job, cause)
            self._parking.add(member)
            (self._stepping if member.is_stepping else self._finished).add(member.resident())
            # Told before the first step, which may be long; also the next chance to cancel.
            self._report([member], Stage.DENOISING)

    def turn(self) -> None:
        """One step of one batch, then at most one finished job decoded. Does nothing when idle.

        Raises DeviceLost or StoringStuck when only a new process can go on.
        """
        self._obey_posted()
        self._collect()
        batch = schedule(self._stepping, self._limits)
        if batch:
            self._stepping.advance(batch)
            members = [self._members[r.id] for r in batch]
            self._parking.settle(members)
            self._step(members)
        finished = leader(self._finished)
        if finished is not None:
            self._finished.advance((finished,))
            self._finished.discard(finished.id)
            self._complete(self._members[finished.id])
            self._storing.linger(self._last_step_seconds)
        elif not batch:
            self._storing.pause()
        self._collect()

    def drain(self) -> None:
        """From now on jobs get a checkpoint before they are decoded: the grace may end first."""
        self._is_draining = True

    def hopeless(self, seconds: float) -> list[ClaimedJob]:
        """Jobs that need more than `seconds` to the end even alone, as far as measured."""
        return [
            m.job
            for m in self._members.values()
            if m.generation and m.least_seconds(self._speeds.seconds_after(m)) > seconds
        ]

    def save(self, jobs: Collection[ClaimedJob], timeout: float) -> None:
        """Take checkpoints of `jobs` now; waits for them for at most `timeout` seconds."""
        self._checkpoints.save([m for m in self._members.values() if m.job in jobs], timeout)

    def evict(self, jobs: Collection[ClaimedJob] | None = None) -> list[tuple[ClaimedJob, Usage]]:
        """Drop `jobs`, or all; returns them, oldest first, with what they have cost."""
        dropped = [m for m in self._members.values() if jobs is None or m.job in jobs]
        for member in dropped:
            self._drop(member)
        if self.is_idle:
            self._storing.clear()
        return [(m.job, m.usage()) for m in dropped]

    def _step(self, members: list[Member]) -> None:
        pipeline = self._pipelines[members[0].job.model]
        key = members[0].resident().batch_key
        images = sum(m.num_images for m in members)
        started = self._clock()
        error = attempt(partial(self._advance, pipeline, members))
        ended = self._clock()
        self._last_step_seconds = ended - started
        if isinstance(error, Cancelled):
            for member in members:
                member.device_seconds += (ended - started) * member.num_images / images
            self._obey_posted()
            return
        if isinstance(error, Exception):
            members = self._step_apart(pipeline, members, error)
        else:
            self._limits.observe(key, images, ended - started)
            metrics.STEP_SECONDS.labels(members[0].job.model).observe(ended - started)
            metrics.BATCH_SIZE.labels(members[0].job.model).observe(images)
            for member in members:
                member.count_step(started, ended, images=images)
        for member in members:
            if member.is_finished:
                self._stepping.discard(member.job.execution_id)
                self._finished.add(member.resident())
        if members:
            self._report(members, Stage.DENOISING)
        now = self._clock()
        for member in members:
            if member.job.execution_id in self._members:
                seconds_left = member.eta_seconds(self._speeds.seconds_after(member))
                self._checkpoints.offer(member, now, seconds_left)

    def _prepare(self, member: Member) -> tuple[Request, Generation]:
        job, keep_going = member.job, self._verdicts.listener([member.job])
        pipeline = self._pipelines[job.model]
        request = self._inputs.request(job, pipeline.spec)
        keep_going()
        generation = pipeline.prepare(request, keep_going)
        self._device.synchronize()
        return request, generation

    def _advance(self, pipeline: Pipeline, members: Sequence[Member]) -> None:
        self._parking.fetch(members)
        batch = [m.generation for m in members if m.generation is not None]
        pipeline.step(batch, self._verdicts.listener([m.job for m in members]))
        self._device.synchronize()

    def _decode(self, member: Member, generation: Generation) -> list[Image] | Clip:
        self._parking.fetch([member])
        keep_going = self._verdicts.listener([member.job])
        return self._pipelines[member.job.model].decode(generation, keep_going)

    def _step_apart(
        self, pipeline: Pipeline, members: list[Member], error: Exception
    ) -> list[Member]:
        """After a batch raised `error`: step every member alone; returns those that could."""
        images = sum(m.num_images for m in members)
        if is_out_of_memory(error):
            self._parking.clear(members)
            self._device.release_memory()
            self._limits.shrink(members[0].resident().batch_key, images)
        elif len(members) == 1:
            self._fail(members[0], Stage.DENOISING, error)
            return []
        log.warning("batch failed, trying its members one by one", images=images, error=str(error))
        stepped = []
        for member in members:
            if is_out_of_memory(error):
                self._parking.clear([member])
            started = self._clock()
            own_error = attempt(partial(self._advance, pipeline, [member]))
            if isinstance(own_error, Exception):
                self._fail(member, Stage.DENOISING, own_error)
                self._device.release_memory()
            else:
                member.count_step(started, self._clock(), images=member.num_images)
                stepped.append(member)
        return stepped

    def _complete(self, member: Member) -> None:
        """Latents to pictures or a clip, and these on their way to files."""
        if not self._report([member], Stage.DECODING):
            return
        started = self._clock()
        model, generation = member.job.model, member.generation
        metrics.STAGE_SECONDS.labels(model, Stage.DENOISING).observe(member.denoise_seconds)
        assert generation is not None
        if not bool(generation.latents.isfinite().all()):
            self._fail(member, Stage.DENOISING, ArithmeticError("the latents are not finite"))
            return
        if self._is_draining:
            self._checkpoints.save([member], timeout=0.0)
        media = self._run(member, partial(self._decode, member, generation))
        if media is None or not self._report([member], Stage.STORING):
            return
        # The latents and all that was computed for them need no longer take memory.
        member.generation = None
        self._parking.discard(member)
        self._storing.put(member, media, decoding_since=started)

    def _collect(self) -> None:
        """Settle what has been stored since the last look."""
        for stored in self._storing.collect():
            member, outputs = stored.member, stored.outputs.result()
            if member.job.execution_id not in self._members:
                continue
            if isinstance(outputs, Exception):
                self._fail(member, Stage.STORING, outputs)
                continue
            self._speeds.observe(stored, self._clock())
            costs = member.costs(storing=self._clock() - stored.storing_since)
            self._settle(
                member, Outcome(Status.SUCCEEDED, outputs, usage=member.usage(), costs=costs)
            )

    def _run(self, member: Member, work: Callable[[], T]) -> T | None:
        """The result of one stage of one job; None after it failed and the job with it, or after
        the job was cancelled meanwhile.

        Out of memory, it is tried once more with all caches emptied and all others moved out.
        """
        started = self._clock()
        result = attempt(work)
        if isinstance(result, Exception) and is_out_of_memory(result):
            self._parking.clear([member])
            self._device.release_memory()
            result = attempt(work)
        seconds = self._clock() - started
        if isinstance(result, Cancelled):
            member.device_seconds += seconds
            self._obey_posted()
            return None
        if isinstance(result, Exception):
            self._fail(member, member.stage, result)
            return None
        metrics.STAGE_SECONDS.labels(member.job.model, member.stage).observe(seconds)
        member.stage_seconds[member.stage] = seconds
        member.device_seconds += seconds
        return result

    def _report(
        self, members: Sequence[Member], stage: Stage, load: ModelLoad | None = None
    ) -> bool:
        """One round trip for all of `members`; True if any may go on."""
        now = self._clock()
        verdicts = self._sink.report(
            [
                m.progress(
                    stage,
                    now,
                    preview=self._previews.of(m, now),
                    seconds_after=self._speeds.seconds_after(m),
                    load=load,
                )
                for m in members
            ]
        )
        for member, verdict in zip(members, verdicts, strict=True):
            self._obey(member, verdict)
        return any(m.job.execution_id in self._members for m in members)

    def _obey_posted(self) -> None:
        for execution_id, verdict in self._verdicts.take():
            if execution_id in self._members:
                self._obey(self._members[execution_id], verdict)

    def _obey(self, member: Member, verdict: Verdict) -> None:
        if verdict is Verdict.CANCEL:
            self._settle(member, cancelled(member.usage()))
        elif verdict is Verdict.LEASE_LOST:
            log.warning("lease lost, dropping the job", job=member.job.id)
            self._drop(member)

    def _fail(self, member: Member, stage: Stage, error: Exception) -> None:
        log.error("job failed", job=member.job.id, stage=stage, exc_info=error)
        failure = failure_of(error, stage, member.job)
        self._settle(member, Outcome(Status.FAILED, failure=failure, usage=member.usage()))

    def _settle(self, member: Member, outcome: Outcome) -> None:
        if self._sink.finish(member.job, outcome):
            self._checkpoints.discard(member.job)
        else:
            log.warning("fenced off, the job went on elsewhere", job=member.job.id)
        self._drop(member)

    def _drop(self, member: Member) -> None:
        self._members.pop(member.job.execution_id, None)
        self._checkpoints.forget(member.job)
        self._stepping.discard(member.job.execution_id)
        self._finished.discard(member.job.execution_id)
        self._parking.discard(member)
        self._note_held()

    def _note_held(self) -> None:
        self._held = tuple(m.job for m in self._members.values())
