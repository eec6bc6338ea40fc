"""The step engine: resident models and the jobs in memory, advanced one batch at a time.

A job comes in by `admit`: its sources are read in the background, everybody else steps on
meanwhile. Every `turn` then encodes at most one job that has been read, takes one denoise step of
the batch that the scheduler picks, reports it in one round trip, and decodes at most one finished
job, so that no queue of newcomers or of results holds up the steps. What is decoded is stored in
the background and settled at a later turn. The engine knows no Redis: reports go to a `Sink`, media
to a `StoringQueue`, states of long jobs to `Checkpoints`.

How a step is taken is told in `workers.stepping`, how a job is encoded and decoded in
`workers.solo_stages`, how one goes on from its checkpoint in `workers.resuming`. A failure stays
with the job that caused it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

import structlog

from jobs.types import ClaimedJob, ModelLoad, Outcome, Stage, Status, Usage, Verdict
from models.errors import Cancelled
from models.pipeline import Pipeline
from workers import metrics
from workers.batch_limits import BatchLimits
from workers.checkpoints import Checkpoints
from workers.device import Device
from workers.failures import cancelled, failure_of
from workers.finish_speeds import FinishSpeeds
from workers.member import RANKS, Member, seconds_left
from workers.parking import Parking
from workers.posted_verdicts import PostedVerdicts
from workers.previews import Previews
from workers.reading import Read, ReadingQueue
from workers.reports import Reports
from workers.resuming import Resuming
from workers.roster import Roster
from workers.scheduler import leader, open_ranks, schedule
from workers.settling import Settling
from workers.sink import Sink
from workers.solo_stages import SoloStages
from workers.stepping import Stepping
from workers.storing import StoringQueue

log = structlog.get_logger(__name__)

PAUSE_SECONDS = 0.01
"""An engine that only waits, for sources, results or Redis, looks so often for new jobs."""


class Engine:
    """Everything resident on one device. All methods but `held` and `post` run on one thread.

    A job has `max_attempts`, of which the last goes on even if its checkpoint cannot be read;
    `capacity` bounds the images in memory (a job of several images may exceed it by those, and so
    may jobs more urgent than all that step); at least `preview_seconds` lie between two previews of
    a job; generations that wait may fill `waiting_bytes` of the device; `clock` counts seconds.
    `alive` is called between pieces of work and may raise Cancelled to leave them: their jobs then
    only wait to be saved and evicted.
    """

    def __init__(
        self,
        pipelines: Mapping[str, Pipeline],
        sink: Sink,
        reading: ReadingQueue,
        storing: StoringQueue,
        checkpoints: Checkpoints,
        device: Device,
        limits: BatchLimits,
        *,
        capacity: int,
        max_attempts: int,
        preview_seconds: float,
        alive: Callable[[], None] = lambda: None,
        waiting_bytes: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pipelines = pipelines
        self._sink = sink
        self._reading = reading
        self._storing = storing
        self._settling = Settling(sink, checkpoints)
        self._checkpoints = checkpoints
        self._limits = limits
        self._capacity = capacity
        self._parking = Parking(pipelines, device, waiting_bytes)
        self._verdicts = verdicts = PostedVerdicts(alive)
        self._solo = SoloStages(pipelines, device, self._parking, verdicts, clock)
        self._resuming = Resuming(sink, checkpoints, self._solo, max_attempts)
        self._stepping = Stepping(pipelines, device, limits, self._parking, verdicts, clock)
        self._clock = clock
        self._is_draining = False
        self._members: dict[str, Member] = {}
        self._unfinished, self._finished = Roster(), Roster()
        self._held: tuple[ClaimedJob, ...] = ()
        self._last_step_seconds = 0.0
        self._speeds = FinishSpeeds()
        self._reports = Reports(Previews(pipelines, preview_seconds), self._speeds, clock)

    @property
    def is_idle(self) -> bool:
        """True when no job is held."""
        return not self._held

    def held(self) -> tuple[ClaimedJob, ...]:
        """The jobs under lease here, a snapshot for any thread."""
        return self._held

    def is_under_way(self, job: ClaimedJob) -> bool:
        """Whether a job has taken a step here and has steps left: what leaves then has got on."""
        member = self._members.get(job.execution_id)
        return member is not None and member.is_stepping and member.steps_taken > 0

    def post(self, job: ClaimedJob, verdict: Verdict) -> None:
        """Deliver a verdict from any thread; obeyed at the next step boundary or piece of work."""
        self._verdicts.post(job, verdict)

    def open_ranks(self) -> int:
        """Classes that may be claimed now: those whose rank is below the returned number."""
        others = len(self._reading.members) + self._finished.num_images + self._storing.num_images
        ranks = open_ranks(
            self._unfinished,
            self._limits,
            capacity=self._capacity - others,
            num_ranks=len(RANKS),
        )
        return min(ranks, self._reading.open_ranks(len(RANKS)))

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
            self._read(member)

    def give_up_expected(self) -> list[tuple[ClaimedJob, Usage]]:
        """Drop the expected jobs, whose model cannot be loaded; returns them with their cost."""
        return self.evict([m.job for m in self._members.values() if m.stage is Stage.LOADING])

    def admit(self, job: ClaimedJob) -> None:
        """Take in a claimed job of a resident model.

        One without sources is encoded at once, of others the sources are read first.
        """
        self._read(self._take_in(job))

    def turn(self) -> None:
        """One step of one batch, before it at most one job encoded, after it at most one decoded.

        Waits a moment when there is nothing to compute yet; does nothing when idle. Raises
        DeviceLost, ReadingStuck or StoringStuck when only a new process can go on.
        """
        self._obey_posted()
        self._settle_stored()
        self._encode_next()
        batch = schedule(self._unfinished, self._limits)
        if batch:
            self._unfinished.advance(batch)
            self._step([self._members[r.id] for r in batch])
        finished = leader(self._finished)
        if finished is not None:
            self._finished.advance((finished,))
            self._finished.discard(finished.id)
            self._decode(self._members[finished.id])
            self._storing.linger(self._last_step_seconds)
        elif not batch:
            pending: list[Future[Any]] = [*self._reading.pending, *self._storing.pending]
            wait(pending, timeout=PAUSE_SECONDS, return_when=FIRST_COMPLETED)
            if not pending and self._settling.members:
                time.sleep(PAUSE_SECONDS)
        self._settle_stored()

    def drain(self) -> None:
        """From now on jobs get a checkpoint before they are decoded: the grace may end first."""
        self._is_draining = True

    def hopeless(self, seconds: float) -> list[ClaimedJob]:
        """Jobs that need more than `seconds` to the end even alone, as far as measured.

        So do those that are still expected: a drain leaves the load.
        """
        return [
            m.job
            for m in self._members.values()
            if m.stage is Stage.LOADING or self._speeds.is_late(m, seconds)
        ]

    def save(self, jobs: Collection[ClaimedJob], timeout: float) -> None:
        """Take checkpoints of `jobs` now; waits for them for at most `timeout` seconds."""
        self._checkpoints.save([m for m in self._members.values() if m.job in jobs], timeout)

    def evict(self, jobs: Collection[ClaimedJob] | None = None) -> list[tuple[ClaimedJob, Usage]]:
        """Drop `jobs`, or all; returns them with what they have cost.

        Those that have ended and could not yet be told come first, then the newest: who hands them
        back one by one leaves the oldest at the front of its queue.
        """
        everyone = [*self._settling.members, *reversed(self._members.values())]
        dropped = [m for m in everyone if jobs is None or m.job in jobs]
        for member in dropped:
            self._drop(member)
        if self.is_idle:
            self._storing.clear()
        return [(m.job, m.usage()) for m in dropped]

    def _take_in(self, job: ClaimedJob) -> Member:
        member = self._members[job.execution_id] = Member(job)
        self._note_held()
        return member

    def _read(self, member: Member) -> None:
        """Have the sources and the checkpoint of a newcomer read."""
        if not self._report([member], Stage.ENCODING):
            return
        spec = self._pipelines[member.job.model].spec
        read = self._reading.put(member, spec, self._checkpoints.fetch)
        if read is not None:
            self._encode(read)

    def _encode_next(self) -> None:
        """The most urgent job that has been read; what was read is let go before the next step."""
        read = self._reading.take()
        if read is not None:
            self._encode(read)

    def _encode(self, read: Read) -> None:
        """From what was read to a generation that can step."""
        member = read.member
        member.reading_seconds = read.seconds
        if isinstance(read.request, Exception):
            self._give_up(member, read.request)
            return
        generation = self._solo.encode(member, read.request)
        if isinstance(generation, Exception):
            self._give_up(member, generation)
            return
        member.begin(read.request, generation)
        if read.state is not None and not self._resuming.resume(member, read.state):
            self._drop(member)
            return
        self._checkpoints.begin(member, self._clock())
        self._parking.add(member)
        (self._unfinished if member.is_stepping else self._finished).add(member.resident())
        # Told before the first step, which may be long; also the next chance to cancel.
        self._report([member], Stage.DENOISING)

    def _step(self, members: Sequence[Member]) -> None:
        """One step of a batch, reported; whoever has moved may get a checkpoint."""
        stepped = self._stepping.step(members)
        self._last_step_seconds = stepped.seconds
        for member, error in stepped.failed:
            self._fail(member, Stage.DENOISING, error)
        for member in stepped.members:
            if member.is_finished:
                self._unfinished.discard(member.job.execution_id)
                self._finished.add(member.resident())
        if stepped.members:
            self._report(stepped.members, Stage.DENOISING)
        else:
            self._obey_posted()
        now = self._clock()
        for member in stepped.members:
            if member.job.execution_id in self._members:
                seconds_left = member.eta_seconds(self._speeds.seconds_after(member))
                self._checkpoints.offer(member, now, seconds_left)

    def _decode(self, member: Member) -> None:
        """Latents to pictures or a clip, and these on their way to files."""
        if not self._report([member], Stage.DECODING):
            return
        started = self._clock()
        metrics.STAGE_SECONDS.labels(member.job.model, Stage.DENOISING).observe(
            member.denoise_seconds
        )
        assert member.generation is not None
        if not bool(member.generation.latents.isfinite().all()):
            self._fail(member, Stage.DENOISING, ArithmeticError("the latents are not finite"))
            return
        if self._is_draining:
            self._checkpoints.save([member], timeout=0.0)
        media = self._solo.decode(member)
        if isinstance(media, Exception):
            self._give_up(member, media)
            return
        if not self._report([member], Stage.STORING):
            return
        # The latents and all that was computed for them need no longer take memory.
        member.generation = None
        self._parking.discard(member)
        self._storing.put(member, media, decoding_since=started)

    def _settle_stored(self) -> None:
        """Settle what has been stored since the last look, and what could not be told then."""
        for stored in self._storing.collect():
            member = stored.member
            outputs = stored.outputs.result()
            if isinstance(outputs, Exception):
                self._fail(member, Stage.STORING, outputs)
                continue
            self._speeds.observe(stored, self._clock())
            costs = member.costs(storing=self._clock() - stored.storing_since)
            self._settle(
                member, Outcome(Status.SUCCEEDED, outputs, usage=member.usage(), costs=costs)
            )
        self._tell()

    def _give_up(self, member: Member, error: Exception) -> None:
        """A stage of the job ended in `error`: it has failed, or nobody wants it any more."""
        if isinstance(error, Cancelled):
            self._obey_posted()
        else:
            self._fail(member, member.stage, error)

    def _report(
        self, members: Sequence[Member], stage: Stage, load: ModelLoad | None = None
    ) -> bool:
        """One round trip for all of `members`; True if any may go on."""
        verdicts = self._sink.report(self._reports.of(members, stage, load))
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
        self._leave(member)
        self._settling.put(member, outcome)
        self._tell()

    def _tell(self) -> None:
        """Let go of the jobs that have ended, as far as that can be told now."""
        for member in self._settling.tell():
            self._drop(member)

    def _drop(self, member: Member) -> None:
        self._leave(member)
        self._settling.discard(member)
        self._checkpoints.forget(member.job)
        self._note_held()

    def _leave(self, member: Member) -> None:
        """No more is computed for it, nor is any verdict on it obeyed.

        Its outcome may be told much later; what was computed must not take memory meanwhile.
        """
        self._members.pop(member.job.execution_id, None)
        self._reading.discard(member)
        self._storing.discard(member)
        self._unfinished.discard(member.job.execution_id)
        self._finished.discard(member.job.execution_id)
        self._parking.discard(member)
        member.generation = None

    def _note_held(self) -> None:
        everyone = [*self._settling.members, *self._members.values()]
        self._held = tuple(member.job for member in everyone)
