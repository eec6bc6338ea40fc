"""What the job layer costs: round trips of submit, claim, report and finish, and a job through the
queue against stock RQ's `SimpleWorker` on the same Redis in the same run.

Jobs do nothing, so all of the time is overhead. RQ and we take turns, and the ratio is the median
over the rounds, so that a busy machine hurts both alike; the client's processor time is given too.
Goal: at least 3.9 times RQ's jobs per second.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from redis import Redis
from rq import Queue, SimpleWorker
from rq.serializers import JSONSerializer

from bench.goals import at_least
from config.settings import Settings
from jobs.connections import connect, connect_async
from jobs.embedded_redis import EmbeddedRedis
from jobs.lease import LeaseClient
from jobs.store import JobStore
from jobs.types import ClaimedJob, NewJob, Outcome, Progress, Stage, Status

MODEL = "bench-model"
LEAST_RATIO = 3.9
ROUNDS = 5
JOBS = 200
CALLS = 200
CONCURRENT_SUBMITS = 32
DONE = Outcome(Status.SUCCEEDED)


@dataclass(frozen=True)
class Cost:
    """Seconds by the clock, and of this process's processor time."""

    clock: float
    cpu: float

    @classmethod
    def now(cls) -> Cost:
        """The readings now; subtract two of them."""
        return cls(time.perf_counter(), time.process_time())

    def since(self, earlier: Cost, jobs: int) -> Cost:
        """What each of `jobs` took since an earlier reading."""
        return Cost((self.clock - earlier.clock) / jobs, (self.cpu - earlier.cpu) / jobs)


def noop() -> None:
    """The job that RQ runs."""


class TimedWorker(SimpleWorker):
    """Notes when its first job starts and its last one has ended: start-up does not count."""

    began: Cost | None = None
    ended: Cost | None = None

    def execute_job(self, job: Any, queue: Any) -> None:
        self.began = self.began or Cost.now()
        super().execute_job(job, queue)
        self.ended = Cost.now()


def new_job() -> NewJob:
    """A job like the real ones: a dozen input fields."""
    fields = {
        "prompt": "a red circle on a blue background",
        "negative_prompt": "",
        "width": 256,
        "height": 256,
        "num_inference_steps": 20,
        "guidance_scale": 4.5,
        "num_images": 1,
        "seed": 7,
        "sampler": "dpm-solver++",
        "output_format": "png",
        "output_quality": 90,
    }
    return NewJob(uuid.uuid4().hex, MODEL, fields, 20)


async def submit(url: str, settings: Settings, count: int, concurrent: int) -> float:
    """Seconds per submit."""
    client = connect_async(url)
    store = JobStore(client, settings)
    await store.submit(new_job())
    jobs = [new_job() for _ in range(count)]
    began = time.perf_counter()
    for start in range(0, count, concurrent):
        await asyncio.gather(*(store.submit(job) for job in jobs[start : start + concurrent]))
    seconds = (time.perf_counter() - began) / count
    await client.aclose()
    return seconds


def drain(worker: LeaseClient) -> Cost:
    """A job's cost between the first claim and the last finish, one job at a time."""
    count = 0
    began = Cost.now()
    while claimed := worker.claim([MODEL], 1):
        worker.finish(claimed[0], DONE)
        count += 1
    return Cost.now().since(began, max(count, 1))


def drain_rq(redis: Redis) -> Cost:
    """The same for RQ, its start and its end left out."""
    queue = Queue("bench-rq", connection=redis, serializer=JSONSerializer)
    for _ in range(JOBS):
        queue.enqueue("bench.job_layer.noop")
    worker = TimedWorker([queue], connection=redis, serializer=JSONSerializer)
    worker.work(burst=True, logging_level="CRITICAL")
    assert worker.began is not None
    assert worker.ended is not None
    return worker.ended.since(worker.began, JOBS)


def submit_rq(redis: Redis) -> float:
    """Seconds per `enqueue`; the queue is emptied."""
    queue = Queue("bench-rq", connection=redis, serializer=JSONSerializer)
    began = time.perf_counter()
    for _ in range(CALLS):
        queue.enqueue("bench.job_layer.noop")
    seconds = (time.perf_counter() - began) / CALLS
    queue.empty()
    return seconds


def per_call(call: Callable[[], object]) -> float:
    """Median microseconds of a call."""
    samples = []
    for _ in range(CALLS):
        began = time.perf_counter()
        call()
        samples.append(time.perf_counter() - began)
    return 1e6 * median(samples)


def steps(worker: LeaseClient, jobs: list[ClaimedJob]) -> dict[str, float]:
    """Microseconds per step, by what a step has to tell."""
    one, eight = jobs[:1], jobs[:8]
    preview = bytes(8192)

    def report(members: list[ClaimedJob], **fields: Any) -> Callable[[], object]:
        updates = [Progress(job, Stage.DENOISING, 1, 20, **fields) for job in members]
        return lambda: worker.report(updates)

    return {
        "report, one job": per_call(report(one)),
        "report, one job, no event": per_call(report(one, event=False)),
        "report, one job, 8 KB preview": per_call(report(one, preview=preview)),
        "report, batch of eight": per_call(report(eight)),
        "heartbeat, batch of eight": per_call(lambda: worker.beat(eight)),
    }


def commands(redis: Redis, call: Callable[[], object]) -> int:
    """How often Redis reads from a socket during a call: the round trips it takes."""
    redis.config_resetstat()
    before = int(redis.info("stats")["total_reads_processed"])  # type: ignore[index]
    call()
    return int(redis.info("stats")["total_reads_processed"]) - before - 1  # type: ignore[index]


def start_latency(url: str, settings: Settings, worker: LeaseClient) -> list[float]:
    """Milliseconds from a submit to the claim by a worker that was waiting at the doorbell."""

    async def once(store: JobStore) -> float:
        def work() -> float:
            while True:
                worker.wait_for_work([MODEL], 1.0)
                if claimed := worker.claim([MODEL], 1):
                    taken = time.perf_counter()
                    worker.finish(claimed[0], DONE)
                    return taken

        working = asyncio.create_task(asyncio.to_thread(work))
        await asyncio.sleep(0.005)
        began = time.perf_counter()
        await store.submit(new_job())
        return 1e3 * (await working - began)

    async def many() -> list[float]:
        client = connect_async(url)
        store = JobStore(client, settings)
        samples = [await once(store) for _ in range(100)]
        await client.aclose()
        return sorted(samples)

    return asyncio.run(many())


def run() -> dict[str, Any]:
    """All figures, as nested dictionaries."""
    logging.getLogger("rq.worker").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder, EmbeddedRedis.start(Path(folder)) as server:
        settings = Settings(redis_url=server.url, max_queued_jobs=10**6)
        worker = LeaseClient(server.url, settings, "bench-worker")
        with connect(server.url) as redis:
            redis_version = str(redis.info("server")["redis_version"])  # type: ignore[index]
            rounds = []
            for _ in range(ROUNDS):
                alone = asyncio.run(submit(server.url, settings, JOBS, 1))
                ours = drain(worker)
                together = asyncio.run(submit(server.url, settings, JOBS, CONCURRENT_SUBMITS))
                drain(worker)
                theirs, theirs_submit = drain_rq(redis), submit_rq(redis)
                rounds.append((ours, theirs, alone, together, theirs_submit))
            asyncio.run(submit(server.url, settings, 8, 8))
            claimed = worker.claim([MODEL], 8)
            per_step = steps(worker, claimed)
            for job in claimed:
                worker.finish(job, DONE)
            drain(worker)
            asyncio.run(submit(server.url, settings, 2, 1))
            held: list[ClaimedJob] = []
            trips = {
                "claim": commands(redis, lambda: held.extend(worker.claim([MODEL], 1))),
                "report": commands(
                    redis, lambda: worker.report([Progress(held[0], Stage.DENOISING, 1, 20)])
                ),
                "finish": commands(redis, lambda: worker.finish(held[0], DONE)),
            }
            drain(worker)
            latencies = start_latency(server.url, settings, worker)
        worker.close()
    ratios = [theirs.clock / ours.clock for ours, theirs, *_ in rounds]
    return {
        "redis": f"embedded, protocol version {redis_version}, AOF everysec, unix socket",
        "jobs per second": {
            "denoised": 1 / median(ours.clock for ours, *_ in rounds),
            "rq SimpleWorker": 1 / median(theirs.clock for _, theirs, *_ in rounds),
            "ratio, median of rounds": median(ratios),
            "ratio, lowest": min(ratios),
            "ratio, highest": max(ratios),
        },
        "worker's processor time, us per job": {
            "denoised": 1e6 * median(ours.cpu for ours, *_ in rounds),
            "rq SimpleWorker": 1e6 * median(theirs.cpu for _, theirs, *_ in rounds),
            "ratio, median of rounds": median(theirs.cpu / ours.cpu for ours, theirs, *_ in rounds),
        },
        "submit, us": {
            "one at a time": 1e6 * median(alone for _, _, alone, *_ in rounds),
            f"{CONCURRENT_SUBMITS} at a time": 1e6 * median(many for *_, many, _ in rounds),
            "rq enqueue": 1e6 * median(theirs for *_, theirs in rounds),
        },
        "step, us": per_step,
        "socket reads by Redis": trips,
        "submit to claim on an idle worker, ms": {
            "p50": median(latencies),
            "p95": latencies[int(len(latencies) * 0.95)],
        },
        "rounds": ROUNDS,
        "jobs per round": JOBS,
        "goals": [at_least("jobs per second, times RQ's", median(ratios), LEAST_RATIO)],
    }


def main() -> int:
    """Prints the figures."""
    from bench.run import report

    return report(run())


if __name__ == "__main__":
    sys.exit(main())
