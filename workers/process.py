"""A worker process: load the models, claim jobs, turn the engine, until told to stop.

The main thread owns the device and loops claim, admit, turn. A heartbeat thread keeps the leases,
two others read the sources of jobs, one encodes and stores results, one checkpoints.
The first SIGTERM or SIGINT drains (leave a load, claim no more, finish what can end within
`drain_seconds`, hand back the rest with a checkpoint and its attempt refunded), the second hands
back at once. Whatever else ends the process, leases lapse and the jobs go on elsewhere, from
their last checkpoints.
"""

from __future__ import annotations

import os
import resource
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Literal

import structlog

from config.model_spec import ModelSpec
from config.settings import Settings
from jobs.errors import StoreUnavailable
from jobs.lease import RETRY_SECONDS, LeaseClient
from jobs.types import ClaimedJob, Priority, Verdict
from jobs.worker_registry import WorkerInfo, worker_name
from models import loading
from models.errors import Cancelled
from models.pipeline import Pipeline
from workers import metrics
from workers.assembly import engine_of
from workers.device import Device, DeviceLost
from workers.engine import Engine
from workers.failures import one_line
from workers.heartbeat import Heartbeat, Pulse
from workers.isolation import Isolation
from workers.load_notices import LoadNotices
from workers.load_speeds import LoadSpeeds
from workers.model_switching import LOOK_SECONDS, ModelSwitching
from workers.residency import Residents
from workers.steady_sink import SteadySink
from workers.stop_signals import Stopped, StopSignals

log = structlog.get_logger(__name__)

EXIT_BROKEN = 70
"""The process could not go on (hang, lost device, bug); its jobs are back on the queue."""

EXIT_NO_MODEL = 78
"""None of the models could be loaded; the reasons are in the log and in the registry."""

CLAIM_PAUSE_SECONDS = 0.01
"""After a claim that found nothing, a busy worker looks again no sooner than this."""

CHECKPOINT_SECONDS = 2.0
"""What is handed back has so long for its checkpoint. Of the grace for a drain so much is kept for
that, but at most a quarter."""

LAST_WORDS_SECONDS = 3.0
"""A hung worker gives back its jobs within this time or leaves them to the keeper."""


def run_worker(
    settings: Settings,
    specs: Sequence[ModelSpec],
    *,
    tag: str | None = None,
    load: Callable[..., Pipeline] = loading.load,
    weigh: Callable[[ModelSpec], int] = loading.weight_bytes,
) -> int:
    """Serve `specs` until SIGTERM or SIGINT; returns the exit status.

    `settings.redis_url` must be set; `tag` ends the worker's name, for whoever has to know it, else
    a random one does; `load` makes a resident pipeline of a spec, `weigh` tells how many bytes that
    will take. Status 0 after a drain, EXIT_NO_MODEL when no model could be loaded, EXIT_BROKEN when
    only a new process can go on. A hang ends the process from the heartbeat thread with
    EXIT_BROKEN.
    """
    if settings.redis_url is None:
        raise ValueError("redis_url: a worker needs a Redis")
    try:
        device = Device.resolve(settings)
    except ValueError as error:
        log.error("worker cannot start", reason=str(error))
        return EXIT_NO_MODEL
    return Worker(settings, settings.redis_url, device, tag=tag, load=load, weigh=weigh).run(specs)


class Worker:
    """One process's models, engine, leases and heartbeat."""

    def __init__(
        self,
        settings: Settings,
        redis_url: str,
        device: Device,
        *,
        tag: str | None = None,
        load: Callable[..., Pipeline] = loading.load,
        weigh: Callable[[ModelSpec], int] = loading.weight_bytes,
    ) -> None:
        self.name = worker_name(os.getpid(), tag or uuid.uuid4().hex[:6])
        self._settings = settings
        self._redis_url = redis_url
        self._device = device
        self._signals = StopSignals()
        self._pulse = Pulse()
        self._lease = LeaseClient(redis_url, settings, self.name, gives_up=self._is_leaving)
        self._sink = SteadySink(self._lease, self._pulse)
        self._notices = LoadNotices(self._lease)
        self._residents = Residents(
            device,
            settings.data_dir / "checkpoints.json",
            LoadSpeeds(settings.data_dir / "load_speeds.json", device.model_name),
            budget_bytes=settings.model_memory_bytes,
            load=load,
            weigh=weigh,
            telling=self._notices.during,
        )
        self._isolation = Isolation(self._lease, settings.max_attempts)
        self._switching = ModelSwitching(
            self._residents,
            self._lease,
            self._isolation,
            self._pulse,
            settings,
            unless_stopped=self._signals.obeyed_at_once,
        )
        self._engine: Engine | None = None
        self._state: Literal["starting", "serving", "draining"] = "starting"
        self._next_claim = 0.0
        self._info = WorkerInfo(
            name=self.name,
            pid=os.getpid(),
            host=socket.gethostname(),
            device=device.model_name,
            dtype=device.dtype,
        )
        self._heartbeat = Heartbeat(
            self._lease,
            settings,
            self._pulse,
            held=self._held,
            post=self._post,
            describe=self._describe,
            note_answer=self._sink.note_answer,
            on_hang=self._die_hanging,
        )

    def run(self, specs: Sequence[ModelSpec]) -> int:
        """Load, serve, drain; returns the exit status."""
        self._heartbeat.start()
        residents = self._residents
        try:
            with self._signals.obeyed_at_once():
                residents.load(specs)
        except Stopped:
            return self._leave(0)
        if not residents.pipelines:
            self._heartbeat.stop()
            self._sign(lambda: self._lease.announce(self._describe()))
            return EXIT_NO_MODEL
        self._engine = engine_of(
            self._settings,
            self._device,
            residents,
            sink=self._sink,
            lease=self._lease,
            alive=self._between_pieces,
        )
        self._state = "serving"
        self._heartbeat.hurry()
        log.info("worker is ready", worker=self.name, models=[*residents.pipelines])
        return self._leave(self._serve(self._engine))

    def _leave(self, status: int) -> int:
        self._heartbeat.stop()
        self._sign(self._lease.retire)
        return status

    def _sign(self, entry: Callable[[], None]) -> None:
        """The last entry in the registry, for which no worker stays."""
        try:
            entry()
        except StoreUnavailable as error:
            log.warning("could not sign off", error=str(error))

    def _serve(self, engine: Engine) -> int:
        cause, detail, refund, status = "drained", "", True, 0
        try:
            with suppress(Stopped):
                while self._signals.count == 0:
                    self._go_on(engine)
            self._drain(engine)
        except DeviceLost as error:
            log.error("device lost", reason=str(error))
            cause, detail, refund, status = "device_lost", one_line(error), False, EXIT_BROKEN
        except Exception as error:
            log.exception("worker failed")
            cause, detail, refund, status = "worker_failed", one_line(error), False, EXIT_BROKEN
        self._hand_back(engine, cause, refund=refund, detail=detail)
        return status

    def _go_on(self, engine: Engine) -> None:
        """One round: claim what there is room for, turn, or wait for the doorbell."""
        try:
            self._claim(engine)
            self._switch_models(engine)
            if engine.is_idle:
                # Only at the bells of what is resident: each ring is heard by one worker, and one
                # that would first have to load the model must not hear it in another's stead.
                timeout = LOOK_SECONDS if self._residents.cold else 1.0
                with self._pulse.waiting():
                    self._lease.wait_for_work([*self._residents.pipelines], timeout)
                self._next_claim = 0.0
        except StoreUnavailable as error:
            self._lose_store(engine, error)
        self._turn(engine)

    def _claim(self, engine: Engine) -> None:
        """At most one job: encoding it delays the steps of the others."""
        now = time.monotonic()
        if now < self._next_claim or (self._sink.is_away and not engine.is_idle):
            return
        ranks = min(self._isolation.open_ranks(engine), engine.open_ranks())
        if ranks == 0:
            return
        models, classes = self._switching.claimable(), [*Priority][:ranks]
        try:
            with self._pulse.waiting():
                jobs = self._lease.claim(
                    models, 1, classes, retry_seconds=RETRY_SECONDS if engine.is_idle else 0
                )
        except StoreUnavailable as error:
            if engine.is_idle:
                raise
            # What is held steps on; its reports find out when Redis is back.
            self._sink.note_failure(error, asked_at=now)
            return
        for job in jobs:
            with self._pulse.waiting():
                is_welcome = self._isolation.let_in(job, engine)
            if is_welcome:
                self._switching.admit(job, engine)
            self._pulse.beat()
        if not jobs:
            self._next_claim = now + CLAIM_PAUSE_SECONDS

    def _switch_models(self, engine: Engine) -> None:
        if self._sink.is_away and not engine.is_idle:
            return
        try:
            self._switching.consider(engine)
        except StoreUnavailable:
            if engine.is_idle:
                raise
            # What is held steps on; its reports find out when Redis is back.

    def _turn(self, engine: Engine) -> None:
        try:
            engine.turn()
        except StoreUnavailable as error:
            self._lose_store(engine, error)
        self._pulse.beat()

    def _lose_store(self, engine: Engine, error: StoreUnavailable) -> None:
        # The leases have lapsed long ago; the models stay resident for when Redis is back.
        dropped = engine.evict()
        log.error("Redis is gone, dropped all jobs", jobs=len(dropped), error=str(error))

    def _drain(self, engine: Engine) -> None:
        """Finish what is held, unless the time is up or a second signal came.

        What cannot end in time goes on elsewhere at once.
        """
        self._state = "draining"
        engine.drain()
        self._heartbeat.hurry()
        log.info("draining", jobs=len(engine.held()), seconds=self._settings.drain_seconds)
        while not self._is_leaving():
            if not self._sink.is_away:
                late = engine.hopeless(self._grace_ends_at() - time.monotonic())
                self._hand_back(engine, "drained", refund=True, jobs=late)
            self._turn(engine)

    def _is_leaving(self) -> bool:
        """True once told to stop, and nothing is held or the grace for it is over."""
        return self._is_grace_over() or (self._signals.count == 1 and not self._held())

    def _is_grace_over(self) -> bool:
        """True once what is held must be handed back as it is; stays true from then on."""
        if self._signals.count != 1:
            return self._signals.count > 1
        return time.monotonic() >= self._grace_ends_at()

    def _between_pieces(self) -> None:
        """Between two pieces of a job's work: raises Cancelled to leave it for others to go on."""
        self._pulse.beat()
        if self._is_grace_over():
            raise Cancelled

    def _grace_ends_at(self) -> float:
        """When a drain leaves what it is at and turns to the last checkpoints."""
        grace = self._settings.drain_seconds
        return self._signals.first_at + grace - min(CHECKPOINT_SECONDS, grace / 4)

    def _hand_back(
        self,
        engine: Engine,
        cause: str,
        *,
        refund: bool,
        jobs: Collection[ClaimedJob] | None = None,
        detail: str = "",
    ) -> None:
        """Give `jobs`, or all, to others; with checkpoints if they were interrupted on purpose."""
        if refund:
            engine.save(engine.held() if jobs is None else jobs, CHECKPOINT_SECONDS)
        for job, usage in engine.evict(jobs):
            try:
                with self._pulse.waiting():
                    self._lease.requeue(job, cause, refund, usage, detail)
            except StoreUnavailable as error:
                log.warning("could not hand back", job=job.id, error=str(error))
                return
            log.info("handed back", job=job.id, cause=cause)

    def _die_hanging(self, jobs: Sequence[ClaimedJob]) -> None:
        log.error("no progress, giving up", seconds=self._settings.step_timeout_seconds)

        def last_words() -> None:
            # The main thread may hang inside a call on its own connection.
            lease = LeaseClient(self._redis_url, self._settings, self.name)
            # The oldest last, which then stands at the front of its queue.
            for job in reversed(jobs):
                lease.requeue(job, "worker_hung", False, None)

        thread = threading.Thread(target=last_words, daemon=True)
        thread.start()
        thread.join(LAST_WORDS_SECONDS)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(EXIT_BROKEN)

    def _held(self) -> tuple[ClaimedJob, ...]:
        return () if self._engine is None else self._engine.held()

    def _post(self, job: ClaimedJob, verdict: Verdict) -> None:
        if self._engine is not None:
            self._engine.post(job, verdict)

    def _describe(self) -> WorkerInfo:
        for kind, count in self._device.memory_bytes().items():
            metrics.GPU_MEMORY_BYTES.labels(kind).set(count)
        serving = "busy" if self._held() else "idle"
        last_progress = datetime.now(UTC).timestamp() - self._pulse.silent_seconds
        return self._info.model_copy(
            update={
                "models": tuple(self._residents.pipelines),
                "on_demand": tuple(self._residents.cold),
                "loading": self._notices.loading,
                "residency": self._residents.residency(),
                "model_bytes": self._residents.measured_bytes(),
                "model_errors": dict(self._residents.errors),
                "state": serving if self._state == "serving" else self._state,
                "last_progress_at": datetime.fromtimestamp(last_progress, UTC),
                "memory_bytes": _resident_bytes(),
            }
        )


def _resident_bytes() -> int:
    """Resident memory of this process now; its peak where the system does not tell."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
