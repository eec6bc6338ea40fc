"""The traffic of `bench.day`: submitters, workers, watchers, a keeper, all on one clock.

Everything goes through the public faces of the job layer (`JobStore`, `LeaseClient`, `EventHub`,
`Keeper`); only the denoising is left out. Arrivals follow the clock: on a machine that falls
behind, jobs wait.
"""

from __future__ import annotations

import asyncio
import math
import random
import threading
import time
from collections import Counter, deque
from contextlib import aclosing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client import REGISTRY
from redis import Redis

from config.model_spec import ModelSpec
from config.settings import Settings
from jobs.api_keys import ANONYMOUS
from jobs.blobs import FileBlobStore, output_key
from jobs.checkpoints import checkpoint_key
from jobs.connections import connect, connect_async
from jobs.errors import DeadlineTooSoon, JobActive, JobNotFound
from jobs.events import EventHub
from jobs.keeper import Keeper
from jobs.lease import LeaseClient
from jobs.schema import resolve_input, total_steps
from jobs.store import JobStore
from jobs.types import (
    Checkpoint,
    ClaimedJob,
    ErrorCode,
    JobFailure,
    NewJob,
    Outcome,
    Output,
    Priority,
    Progress,
    Stage,
    StageCosts,
    Status,
    Usage,
    Verdict,
)
from jobs.worker_registry import WorkerInfo

DAY_HOURS = 24.0
SWING = 0.6
"""The busiest hour has 1.6 times the average arrivals, the quietest 0.4 times."""

STEPS = 4
BATCH_OF_SUBMITS = 128
WORKERS = 2
SWEEP_SECONDS = 60.0
"""Simulated, between two walks of the keeper."""

SEATS = 16
"""Jobs that one worker claims at a time."""

WATCHERS = 8
PREVIEW = bytes(8192)
WORDS = ("red", "blue", "circle", "square", "on a", "background", "moving", "with soft light")

KILLED, HANDED_BACK, FAILED, CHECKPOINTED, PREVIEWED = 0.01, 0.01, 0.02, 0.05, 0.05
"""Shares of the attempts."""

CANCELLED_AT_ONCE, CANCELLED_LATER, DELETED, REPEATABLE, HURRIED = 0.02, 0.02, 0.01, 0.1, 0.05
"""Shares of the jobs; those with an idempotency key, and with a deadline, are the last two."""


def arrived(hour: float) -> float:
    """The share of the day's jobs that has come by `hour`; the rate is that of a sine."""
    turn = 2 * math.pi / DAY_HOURS
    wave = math.cos(turn * 9) - math.cos(turn * (hour - 9))
    return (hour + SWING * wave / turn) / DAY_HOURS


@dataclass(frozen=True)
class Clock:
    """Simulated hours since `began`; `scale` of them pass in one."""

    scale: float
    began: float

    @property
    def hour(self) -> float:
        return (time.monotonic() - self.began) * self.scale / 3600


class Load:
    """The deployment's load. Counts what it did in `counts`; `stop` ends its threads.

    `scale`: simulated seconds that pass in one.
    """

    def __init__(
        self,
        url: str,
        settings: Settings,
        spec: ModelSpec,
        owners: list[str],
        *,
        seed: int,
        scale: float,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.most_waiting = 0
        self._url = url
        self._settings = settings
        self._spec = spec
        self._owners = [ANONYMOUS, *owners]
        self._seed = seed
        self._scale = scale
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._errors: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._guarded, args=(self._work, f"day-{n}"))
            for n in range(WORKERS)
        ]

    def start(self, blobs: Path) -> None:
        """Workers and keeper begin."""
        keep = threading.Thread(target=self._guarded, args=(self._keep, blobs))
        self._threads.append(keep)
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ends all threads; raises what ended one of them early."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self.check()
        put_back = REGISTRY.get_sample_value(
            "denoised_jobs_requeued_total", {"cause": "lease_lapsed"}
        )
        self.counts["put back by the keeper"] = int(put_back or 0)

    def check(self) -> None:
        """Raises what has ended a thread early."""
        if self._errors:
            raise self._errors[0]

    async def queue_up(self, first: int, count: int) -> None:
        """Submits `count` jobs, numbered from `first` on."""
        async with connect_async(self._url) as client:
            store = JobStore(client, self._settings)
            for number in range(first, first + count):
                await store.submit(self._new_job(number))

    async def arrive(self, clock: Clock, jobs: int) -> None:
        """Submits, cancels, deletes and watches until the day's `jobs` have come."""
        client = connect_async(self._url)
        store, hub = JobStore(client, self._settings), EventHub(client)
        watching: set[asyncio.Task[None]] = set()
        later: deque[tuple[float, NewJob, str]] = deque()
        submitted = 0
        while submitted < jobs:
            self.check()
            due = min(int(arrived(min(clock.hour, DAY_HOURS)) * jobs), jobs) - submitted
            self.most_waiting = max(self.most_waiting, due)
            if due == 0:
                await asyncio.sleep(0.01)
            batch = [self._new_job(submitted + n) for n in range(min(due, BATCH_OF_SUBMITS))]
            submitted += len(batch)
            taken = await asyncio.gather(*(self._submit(store, job) for job in batch))
            batch = [job for job, is_taken in zip(batch, taken, strict=True) if is_taken]
            for number, job in enumerate(batch, start=submitted - len(batch)):
                await self._disturb(store, job, random.Random(f"{self._seed} {number}"), later)
            if batch and len(watching) < WATCHERS:
                task = asyncio.create_task(self._watch(hub, batch[-1].id))
                watching.add(task)
                task.add_done_callback(watching.discard)
            await self._follow_up(store, later)
        self.counts["jobs"] = submitted
        await self._follow_up(store, later, everything=True)
        while watching:
            self.check()
            await asyncio.wait(watching, timeout=1.0)
        await hub.close()
        await client.aclose()

    async def _submit(self, store: JobStore, job: NewJob) -> bool:
        try:
            await store.submit(job)
            return True
        except DeadlineTooSoon:
            # On a machine that cannot keep pace so much waits that its deadline cannot be met.
            self.counts["refused for their deadline"] += 1
            return False

    def _new_job(self, number: int) -> NewJob:
        draw = random.Random(f"{self._seed} new {number}")
        prompt = " ".join(draw.choices(WORDS, k=draw.randint(5, 60)))
        resolved = resolve_input(self._spec, {"prompt": prompt, "num_inference_steps": STEPS})
        repeatable = draw.random() < REPEATABLE
        return NewJob(
            id=f"job_{draw.getrandbits(128):032x}",
            model=self._spec.id,
            input=resolved,
            total_steps=total_steps(resolved),
            priority=draw.choice([*Priority]),
            owner=draw.choice(self._owners),
            deadline_seconds=3600.0 if draw.random() < HURRIED else None,
            idempotency_key=f"key {number}" if repeatable else None,
            fingerprint=f"{number:064x}" if repeatable else "",
        )

    async def _disturb(
        self, store: JobStore, job: NewJob, draw: random.Random, later: deque[Any]
    ) -> None:
        fate = draw.random()
        if fate < CANCELLED_AT_ONCE:
            await store.cancel(job.id, job.owner)
            self.counts["cancels"] += 1
        elif fate < CANCELLED_AT_ONCE + CANCELLED_LATER:
            later.append((time.monotonic() + 0.05, job, "cancel"))
        elif fate < CANCELLED_AT_ONCE + CANCELLED_LATER + DELETED:
            later.append((time.monotonic() + 0.5, job, "delete"))

    async def _follow_up(
        self, store: JobStore, later: deque[Any], *, everything: bool = False
    ) -> None:
        while later and (everything or later[0][0] <= time.monotonic()):
            _, job, what = later.popleft()
            # Its time may be over already, or it may run still.
            with suppress(JobNotFound, JobActive):
                if what == "cancel":
                    await store.cancel(job.id, job.owner)
                else:
                    await store.delete(job.id, job.owner)
                self.counts[f"{what}s"] += 1

    async def _watch(self, hub: EventHub, job_id: str) -> None:
        with suppress(JobNotFound):
            async with aclosing(hub.watch(job_id)) as events:
                async for _ in events:
                    self.counts["events read"] += 1
        self.counts["watched jobs"] += 1

    def _guarded(self, target: Any, argument: Any) -> None:
        try:
            target(argument)
        except BaseException as error:
            self._errors.append(error)

    def _keep(self, folder: Path) -> None:
        with connect(self._url) as redis:
            keeper = Keeper(
                redis,
                self._settings,
                FileBlobStore(folder),
                sweep_seconds=SWEEP_SECONDS / self._scale,
            )
            keeper.run(self._stop)

    def _work(self, name: str) -> None:
        worker = LeaseClient(self._url, self._settings, name)
        info = WorkerInfo(
            name=name, pid=0, host="bench", device="none", dtype="none", models=(self._spec.id,)
        )
        announced = -math.inf
        while not self._stop.is_set():
            if time.monotonic() > announced + 5:
                worker.announce(info)
                announced = time.monotonic()
            if claimed := worker.claim([self._spec.id], SEATS):
                self._count(self._run(worker, claimed))
            else:
                worker.wait_for_work([self._spec.id], 0.1)
        worker.retire()
        worker.close()

    def _run(self, worker: LeaseClient, claimed: list[ClaimedJob]) -> Counter[str]:
        """One batch from its claim to its end, as the engine and its heartbeat report it."""
        draws = {job.id: random.Random(f"{self._seed} {job.execution_id}") for job in claimed}
        done: Counter[str] = Counter()
        cancelled: set[str] = set()
        held = []
        for job in claimed:
            if draws[job.id].random() < KILLED:
                done["killed"] += 1
            else:
                held.append(job)
        for step in range(STEPS + 1):
            updates = [_progress(job, step, draws[job.id]) for job in held]
            verdicts = zip(held, worker.report(updates), strict=True)
            found = {job.id: verdict for job, verdict in verdicts}
            done["fenced off"] += sum(v is Verdict.LEASE_LOST for v in found.values())
            held = [job for job in held if found[job.id] is not Verdict.LEASE_LOST]
            cancelled |= {job_id for job_id, v in found.items() if v is Verdict.CANCEL}
            for job in held:
                if step == STEPS // 2 and draws[job.id].random() < CHECKPOINTED:
                    key = checkpoint_key(job.id, job.execution_id, step)
                    worker.record_checkpoint(
                        job, Checkpoint(key, step, "0" * 64), Usage(steps=step)
                    )
                    done["checkpoints"] += 1
        for job in held:
            if draws[job.id].random() < HANDED_BACK and job.id not in cancelled:
                worker.requeue(job, "drained", True, Usage())
                done["handed back"] += 1
                continue
            outcome = _outcome(job, draws[job.id], is_cancelled=job.id in cancelled)
            if worker.finish(job, outcome):
                done[outcome.status.value] += 1
        return done

    def _count(self, more: dict[str, int] | Counter[str]) -> None:
        with self._lock:
            self.counts.update(more)


def _progress(job: ClaimedJob, step: int, draw: random.Random) -> Progress:
    stage = Stage.DENOISING if step else Stage.ENCODING
    preview = PREVIEW if step == STEPS and draw.random() < PREVIEWED else None
    return Progress(job, stage, step, STEPS, 0.1, preview, event=step > 0)


def _outcome(job: ClaimedJob, draw: random.Random, *, is_cancelled: bool) -> Outcome:
    usage = Usage(gpu_seconds=0.04, steps=STEPS)
    if is_cancelled:
        failure = JobFailure(code=ErrorCode.CANCELLED, message="cancelled on request")
        return Outcome(Status.CANCELLED, failure=failure, usage=usage)
    if draw.random() < FAILED:
        failure = JobFailure(code=ErrorCode.INTERNAL, message="it went wrong in step 1")
        return Outcome(Status.FAILED, failure=failure, usage=usage)
    output = Output(
        key=output_key(job.id, job.execution_id, 0, "png"),
        content_type="image/png",
        width=job.input["width"],
        height=job.input["height"],
        bytes=12_345,
        sha256="0" * 64,
        seed=job.input["seed"],
    )
    costs = StageCosts(0.001, 0.01, 0.01, 0.001, 0.001)
    return Outcome(Status.SUCCEEDED, (output,), usage=usage, costs=costs)


def is_quiet(redis: Redis) -> bool:
    """Whether no job waits or runs."""
    waiting = [redis.llen(name) for name in redis.smembers("rq:queues")]  # type: ignore[union-attr]
    return not sum(map(int, waiting)) and not redis.zcard("denoised:wip")  # type: ignore[arg-type]
