"""The worker's side of the job layer: claim, report, beat, checkpoint, finish, give back.

The lease's execution id fences every write: a worker that was frozen or cut off and comes back is
told so and changes nothing. While Redis is away the calls retry with back-off for up to a minute,
so that a restart of Redis costs neither the result nor the resident model; the scripts tell a
repeated send from a new one.
"""

from __future__ import annotations

import logging
import math
import time
import uuid
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from redis import Redis
from redis.exceptions import AuthenticationError, AuthorizationError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from config.settings import Settings
from jobs import keys, metrics, scripts, worker_registry
from jobs.connections import SOCKET_TIMEOUT, connect
from jobs.errors import ForeignJob, StoreUnavailable, is_away
from jobs.lease_wire import (
    beat_arguments,
    claimed_job,
    finish_arguments,
    progress_arguments,
    usage_arguments,
    verdict_of,
)
from jobs.rq_record import FROM_RQ, decode_call
from jobs.types import (
    Checkpoint,
    ClaimedJob,
    ErrorCode,
    JobFailure,
    ModelLoad,
    Outcome,
    Priority,
    Progress,
    Status,
    Usage,
    Verdict,
)
from jobs.worker_registry import WORKER_TTL_SECONDS, WorkerInfo

log = logging.getLogger(__name__)

RETRY_SECONDS = 60.0
"""How long a call keeps trying while Redis is away."""

DOORBELL_SECONDS = 1.0
"""Longest wait for the doorbell: jobs that ring no bell (`rq requeue`) start within it."""

MOST_TOLD = 256
"""Waiting jobs that are told of a load, so that Redis is not held up for long."""

ALLOWANCE_SECONDS = {Priority.INTERACTIVE: 0.0, Priority.STANDARD: 30.0, Priority.BATCH: 300.0}
"""How much later than its submission a job of each class is due. Of one key's jobs the earliest due
is claimed first: none is passed by one of the same key that was submitted later than this many
seconds after it, whatever its class."""

T = TypeVar("T")


class LeaseClient:
    """One worker's connections to the queue: for its main thread, its heartbeat, its checkpoints.

    `worker` is the name that records show. All methods but `beat` and `announce`, which belong to
    the heartbeat, and `record_checkpoint` belong to the main thread. Each raises `StoreUnavailable`
    after Redis has been away for a minute, or at once while `gives_up` says so; then a Redis that
    does not answer is asked once, not once for everything there is to say.
    """

    def __init__(
        self,
        redis_url: str,
        settings: Settings,
        worker: str,
        *,
        gives_up: Callable[[], bool] = lambda: False,
    ) -> None:
        self._settings = settings
        self._worker = worker
        self._gives_up = gives_up
        self._unanswered_claim: str | None = None
        self._silent_since = -math.inf
        self._main = connect(redis_url)
        self._heartbeat = connect(redis_url)
        self._checkpoints = connect(redis_url)

    def claim(
        self,
        models: Sequence[str],
        limit: int,
        priorities: Collection[Priority] = tuple(Priority),
        *,
        retry_seconds: float = RETRY_SECONDS,
    ) -> list[ClaimedJob]:
        """Takes up to `limit` waiting jobs of these models, most urgent first; may return none.

        API keys share the device by GPU-seconds; what came without a key counts as one. The rules
        are in `scripts/claim.lua`. While a key has jobs waiting and has its quota of running ones
        not used up:
        - within a class each other key gets at most the cost of this key's own latest job, and one
          job more, before it is its turn (costs as estimated at claims and corrected at ends);
        - a more urgent class passes it only with keys that are due before it is, that is, for no
          longer than the allowance of its most urgent waiting class after its latest claim, or its
          oldest submission if that is later; what is due before it then is at most one job a key
          and turn.

        Only classes in `priorities` are looked at: a worker without a free seat still takes what
        is more urgent than all it holds.

        Each counts as an attempt and is leased for `settings.lease_seconds`. Jobs that did not come
        from our submit script are failed here and never returned. After `StoreUnavailable` the next
        call brings what this one may have been granted.
        """
        self._unanswered_claim = claim_id = self._unanswered_claim or uuid.uuid4().hex
        args: list[scripts.Argument] = [
            self._worker,
            claim_id,
            self._settings.lease_seconds,
            int(RETRY_SECONDS + self._settings.lease_seconds) + 1,
            limit,
            self._settings.result_ttl_seconds,
            self._settings.event_ttl_seconds,
        ]
        for priority, allowance in ALLOWANCE_SECONDS.items():
            for model in models if priority in priorities else ():
                args += [keys.queue_name(model, priority), int(allowance * 1e6)]
        now_us, granted, late = self._retry(
            lambda: scripts.run(self._main, scripts.CLAIM, args), retry_seconds
        )
        self._unanswered_claim = None
        for model in late:
            metrics.JOBS_FINISHED.labels(model.decode(), Status.FAILED.value).inc()
        claimed = []
        for fields in granted:
            job = self._accept(fields, int(now_us))
            if job is not None:
                metrics.JOB_QUEUE_SECONDS.labels(job.model).observe(job.queued_seconds)
                claimed.append(job)
        return claimed

    def oldest_waiting(
        self, models: Sequence[str], priorities: Collection[Priority] = tuple(Priority)
    ) -> dict[str, float]:
        """Seconds for which the oldest job that could be claimed now has waited, of each model.

        Like `claim` it looks at the heads of queues in `priorities`, and leaves out keys that have
        their quota of running jobs used up. Models without such a job are left out. Raises
        `StoreUnavailable` at once when Redis is away: nobody waits for this answer.
        """
        args = [len(models), *models, *(priority.value for priority in priorities)]
        ages = self._retry(lambda: scripts.run(self._main, scripts.WAITING, args), 0)
        return {m: float(age) for m, age in zip(models, ages, strict=True) if age}

    def tell_loading(self, model: str, load: ModelLoad) -> int:
        """Tells the jobs that wait for a model that it is being loaded, `MOST_TOLD` at most.

        Those submitted before `tell_loaded` are told, too, while `announce` says the same. Their
        events show it; they stay queued. Where another idle or busy worker has it resident, nobody
        is told. Returns how many were. Raises `StoreUnavailable` at once when Redis is away.
        """
        seconds = "" if load.eta_seconds is None else load.eta_seconds
        args: list[scripts.Argument] = [model, MOST_TOLD, load.bytes, seconds, WORKER_TTL_SECONDS]
        return int(self._retry(lambda: scripts.run(self._main, scripts.LOADING, args), 0))

    def tell_loaded(self, model: str) -> None:
        """A load has ended. Raises `StoreUnavailable` at once when Redis is away."""
        self._retry(lambda: self._main.delete(keys.loading(model)), 0)

    def wait_for_work(self, models: Sequence[str], timeout: float) -> None:
        """Returns when a job may be waiting: at the doorbell, or after `timeout` (at most 1 s)."""
        wait = min(timeout, DOORBELL_SECONDS)
        bells = [keys.wake(model) for model in models]
        if not bells:
            time.sleep(wait)
            return
        self._retry(lambda: self._main.blpop(bells, timeout=wait))

    def report(
        self, updates: Sequence[Progress], *, retry_seconds: float = RETRY_SECONDS
    ) -> list[Verdict]:
        """Tells how far jobs are, in one round trip; extends their leases.

        Returns a verdict for each update, in order. Raises `StoreUnavailable` once Redis has been
        away for `retry_seconds`; with 0 at once, for a worker that would rather go on computing.
        """
        calls = [progress_arguments(update, self._settings.lease_seconds) for update in updates]
        return self._verdicts(self._main, calls, retry_seconds)

    def beat(self, jobs: Sequence[ClaimedJob]) -> list[Verdict]:
        """Extends the leases of jobs from the heartbeat thread; returns a verdict for each."""
        calls = [beat_arguments(job, self._settings.lease_seconds) for job in jobs]
        return self._verdicts(self._heartbeat, calls)

    def record_checkpoint(self, job: ClaimedJob, checkpoint: Checkpoint, usage: Usage) -> bool:
        """Points the job at `checkpoint`, whose blob is in place; from the thread that wrote it.

        `usage` is what the attempt had cost when it was taken. False when the job does not point at
        it now: the lease was lost, or a newer checkpoint stands.
        """
        args: list[scripts.Argument] = [
            job.id,
            job.execution_id,
            checkpoint.key,
            checkpoint.step,
            checkpoint.sha256,
            *usage_arguments(usage),
        ]
        reply = self._retry(lambda: scripts.run(self._checkpoints, scripts.CHECKPOINT, args))
        return bool(reply == 1)

    def restarted(self, job: ClaimedJob, cause: str) -> bool:
        """Tells that the job's checkpoint is of no use and it starts at step 0 after all.

        `cause` shows in the job.restarted event. False when the lease was lost. Raises `ValueError`
        for a job without a checkpoint.
        """
        if job.checkpoint is None:
            raise ValueError("the job has no checkpoint")
        args: list[scripts.Argument] = [job.id, job.execution_id, job.checkpoint.key, cause]
        return bool(self._retry(lambda: scripts.run(self._main, scripts.RESTART, args)))

    def finish(
        self, job: ClaimedJob, outcome: Outcome, *, retry_seconds: float = RETRY_SECONDS
    ) -> bool:
        """Ends the job. False when the lease was lost: somebody else decides, nothing changed.

        A second call for the same execution returns True and changes nothing. Raises
        `StoreUnavailable` once Redis has been away for `retry_seconds`, with 0 at once, and
        `ValueError` for an outcome that is not terminal, or failed without a failure.
        """
        if not outcome.status.is_terminal:
            raise ValueError(f"a job cannot finish as {outcome.status.value}")
        if outcome.status is Status.FAILED and outcome.failure is None:
            raise ValueError("a failed outcome needs a failure")
        settings = self._settings
        args = finish_arguments(
            job, outcome, settings.result_ttl_seconds, settings.event_ttl_seconds
        )
        reply = self._retry(lambda: scripts.run(self._main, scripts.FINISH, args), retry_seconds)
        if reply[0] == 1:
            self._count_finish(job, reply)
        return bool(reply[0])

    def requeue(
        self,
        job: ClaimedJob,
        cause: str,
        refund_attempt: bool,
        usage: Usage | None,
        detail: str = "",
    ) -> bool:
        """Hands the job back to the front of its queue; False when the lease was lost.

        Whoever claims it next goes on from its checkpoint. `cause` shows in the job.requeued event.
        A drain refunds the attempt; without a refund a job whose attempts are used up fails with
        worker_lost, whose message names the causes; RQ's trace of it has `detail`, one line, too. A
        job whose cancellation was asked for ends as cancelled. Without `usage` the attempt is
        charged what it was estimated to cost, or what its checkpoints have booked if that is more.
        """
        args: list[scripts.Argument] = [
            job.id,
            job.execution_id,
            cause,
            int(refund_attempt),
            detail.encode("utf-8", "replace"),
            *usage_arguments(usage),
            self._settings.result_ttl_seconds,
            self._settings.event_ttl_seconds,
        ]
        result = self._retry(lambda: scripts.run(self._main, scripts.REQUEUE, args)).decode()
        metrics.count_put_back(job.model, cause, result)
        return bool(result)

    def announce(self, info: WorkerInfo) -> None:
        """Tells the deployment about this worker, from the heartbeat thread."""
        self._retry(lambda: worker_registry.announce(self._heartbeat, info))

    def retire(self) -> None:
        """Takes this worker off the list of living ones."""
        self._retry(lambda: worker_registry.retire(self._main, self._worker))

    def close(self) -> None:
        """Gives all connections back."""
        self._main.close()
        self._heartbeat.close()
        self._checkpoints.close()

    def _accept(self, fields: Sequence[bytes | None], now_us: int) -> ClaimedJob | None:
        """The claimed job, or None after failing a record that we did not submit."""
        job, data = claimed_job(fields, now_us)
        try:
            if not job.model:
                raise ForeignJob("PermissionError: the job was not submitted through denoised")
            return replace(job, input=decode_call(data).input)
        except ForeignJob as refusal:
            log.warning("refused job %s: %s", job.id, refusal)
            failure = JobFailure(code=ErrorCode.INVALID_INPUT, message=str(refusal))
            self.finish(job, Outcome(Status.FAILED, failure=failure))
            return None

    def _verdicts(
        self,
        redis: Redis,
        calls: Sequence[Sequence[scripts.Argument]],
        retry_seconds: float = RETRY_SECONDS,
    ) -> list[Verdict]:
        if not calls:
            return []
        return self._retry(
            lambda: [
                verdict_of(reply) for reply in scripts.run_many(redis, scripts.PROGRESS, calls)
            ],
            retry_seconds,
        )

    def _count_finish(self, job: ClaimedJob, reply: Sequence[Any]) -> None:
        outcome = FROM_RQ[reply[1].decode()]
        metrics.JOBS_FINISHED.labels(job.model, outcome.value).inc()
        metrics.JOB_RUN_SECONDS.labels(job.model).observe(float(reply[2]))
        if reply[3]:
            metrics.CANCEL_SECONDS.observe(float(reply[3]))
        if reply[4] and reply[5]:
            took, estimated = float(reply[4]), float(reply[5])
            metrics.ETA_ERROR_RATIO.observe(abs(estimated - took) / max(took, 1e-6))

    def _retry(self, operation: Callable[[], T], retry_seconds: float = RETRY_SECONDS) -> T:
        deadline = time.monotonic() + retry_seconds
        pause = 0.05
        while True:
            if time.monotonic() - self._silent_since < SOCKET_TIMEOUT and self._gives_up():
                raise StoreUnavailable("Redis did not answer a moment ago")
            try:
                result = operation()
                self._silent_since = -math.inf
                return result
            except (AuthenticationError, AuthorizationError) as error:
                raise StoreUnavailable(f"Redis refuses this client: {error}") from error
            except RedisError as error:
                if not is_away(error):
                    raise
                if isinstance(error, RedisTimeoutError):
                    self._silent_since = time.monotonic()
                if self._gives_up() or time.monotonic() + pause > deadline:
                    raise StoreUnavailable(f"Redis cannot be reached: {error}") from error
                log.warning("Redis is away, trying again: %s", error)
                time.sleep(pause)
                pause = min(pause * 2, 1.0)
