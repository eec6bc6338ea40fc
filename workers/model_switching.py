"""Loading another model for jobs that wait: the worker's side of `workers.model_choice`.

Between two steps the worker asks `consider` whether a cold model's jobs have waited long enough.
If so, some of them are claimed, idle models make room, and the load runs on the main thread while
the heartbeat keeps all leases. Where a model with work in hand has to go, its queues are left alone
(`claimable`) until it is done. A worker whose models all fit has nothing cold, and none of this
costs it anything.

Only jobs that could be claimed count: of open classes, of keys with room in their quota. Where none
is had all the same (another worker was first, or it may not be let in), the model's wait counts
anew from then. So another model is considered at the next look, and a busy worker tries the same
one in vain, for which it may have finished models without feeding them, at most once in `patience`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import structlog

from config.settings import Settings
from jobs.errors import StoreUnavailable
from jobs.types import ClaimedJob, ModelLoad, Priority, Usage
from workers.engine import Engine
from workers.heartbeat import Pulse
from workers.isolation import Isolation
from workers.model_choice import model_to_load
from workers.residency import Residents

log = structlog.get_logger(__name__)

LOOK_SECONDS = 0.25
"""The queues of cold models are looked at no more often."""

CLAIMED_AHEAD = 4
"""Jobs that are claimed for a load: they see it coming, and fill the first batch."""

NOT_LOADED = "model_not_loaded"
"""Why jobs go back to the queue when their model could not be loaded here."""


class ColdQueues(Protocol):
    """What of `jobs.lease.LeaseClient` is needed here."""

    def oldest_waiting(
        self, models: Sequence[str], priorities: Collection[Priority]
    ) -> dict[str, float]:
        """Seconds for which the oldest job that could be claimed now of each model has waited.

        Models without one are left out.
        """

    def claim(
        self,
        models: Sequence[str],
        limit: int,
        priorities: Collection[Priority],
        *,
        retry_seconds: float,
    ) -> list[ClaimedJob]:
        """Take up to `limit` jobs, or others that an unanswered call had been granted."""

    def requeue(self, job: ClaimedJob, cause: str, refund_attempt: bool, usage: Usage) -> bool:
        """Hand a job back."""


class ModelSwitching:
    """Decides and carries out switches. Belongs to the main thread; `clock` counts seconds.

    Loads run inside `unless_stopped()`, which may leave them: their jobs are still expected then.
    """

    def __init__(
        self,
        residents: Residents,
        queues: ColdQueues,
        isolation: Isolation,
        pulse: Pulse,
        settings: Settings,
        *,
        unless_stopped: Callable[[], AbstractContextManager[None]] = nullcontext,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._residents = residents
        self._queues = queues
        self._isolation = isolation
        self._pulse = pulse
        self._settings = settings
        self._unless_stopped = unless_stopped
        self._clock = clock
        self._next_look = -math.inf
        self._switched_at = -math.inf
        self._in_vain: dict[str, float] = {}  # by model: when no job was had for it
        self._held_back: tuple[str, ...] = ()

    def claimable(self) -> list[str]:
        """Resident models whose jobs may be claimed now."""
        return [m for m in self._residents.pipelines if m not in self._held_back]

    def admit(self, job: ClaimedJob, engine: Engine) -> None:
        """Have a claimed job computed, or put back if its model has had to go since it was asked
        for.
        """
        if job.model in self._residents.pipelines:
            self._residents.note_use([job.model])
            engine.admit(job)
        else:
            self._put_back(job, Usage())

    def consider(self, engine: Engine) -> None:
        """Switch models if it is time. Raises StoreUnavailable, at once when Redis is away."""
        cold = tuple(self._residents.cold)
        now = self._clock()
        if not cold or now < self._next_look:
            return
        self._next_look = now + LOOK_SECONDS
        seconds_left = engine.seconds_left()
        self._residents.note_use(m for m in seconds_left if m in self._residents.pipelines)
        classes = self._open_classes(engine)
        waiting = self._queues.oldest_waiting(cold, classes) if classes else {}
        model = model_to_load(
            waiting,
            in_vain={m: now - then for m, then in self._in_vain.items()},
            is_idle=engine.is_idle,
            since_switch=now - self._switched_at,
            patience=self._settings.model_switch_seconds,
        )
        self._held_back = ()
        if model is not None:
            try:
                self._make_room_for(model, seconds_left, engine)
            except StoreUnavailable:
                engine.give_up_expected()  # their leases lapse
                raise

    def _make_room_for(self, model: str, seconds_left: Mapping[str, float], engine: Engine) -> None:
        evicted = self._residents.to_evict(model, seconds_left)
        busy = tuple(name for name in evicted if name in seconds_left)
        if busy:
            self._held_back = busy
            return
        load = self._residents.expected(model)
        self._claim_ahead(model, load, engine)
        if model not in engine.seconds_left():
            self._in_vain[model] = self._clock()
            return
        log.info("loading a model for waiting jobs", model=model, evicted=evicted)
        timeout = self._settings.load_timeout_seconds
        with self._pulse.waiting(timeout), self._unless_stopped():
            is_loaded = self._residents.switch(model, evicted)
        self._switched_at = self._clock()
        if is_loaded:
            engine.admit_expected()
            return
        for job, usage in engine.give_up_expected():
            self._put_back(job, usage)

    def _put_back(self, job: ClaimedJob, usage: Usage) -> None:
        with self._pulse.waiting():
            self._queues.requeue(job, NOT_LOADED, True, usage)

    def _open_classes(self, engine: Engine) -> list[Priority]:
        return [*Priority][: self._isolation.open_ranks(engine)]

    def _claim_ahead(self, model: str, load: ModelLoad, engine: Engine) -> None:
        """Take in jobs for a load, one by one: any of them may have to be alone."""
        for _ in range(CLAIMED_AHEAD):
            classes = self._open_classes(engine)
            jobs = self._queues.claim([model], 1, classes, retry_seconds=0) if classes else []
            if not jobs:
                return
            for job in jobs:
                if job.model != model:
                    self._put_back(job, Usage())
                    continue
                with self._pulse.waiting():
                    is_welcome = self._isolation.let_in(job, engine)
                if is_welcome:
                    engine.expect(job, load)
