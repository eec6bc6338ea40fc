"""Every promise, held against what Redis, the API and the disk have after a run.

`check_jobs` looks at each accepted job while the deployment still runs; `check_leftovers` looks
for what nobody needs any more, once workers have stopped and again when every job is deleted.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from redis import Redis

from jobs.keys import EXPIRY, INDEX, LEASES, QUEUES, listing
from jobs.types import ClaimedJob, Priority
from tests.chaos.clients import Accepted, Clients
from tests.chaos.expected import ExpectedFiles
from tests.chaos.verdict import Findings

TERMINAL = ("succeeded", "failed", "cancelled")
AT_ONCE = 8

LONG_SECONDS = 1.5
"""Of steps: after so long, thrice the time between checkpoints, a long job should have one."""

FEW = 3

# What a Redis may hold when every job is gone: counters, names of queues, and what ends by itself.
# What was measured, and how much of the device each key has had.
_LEARNT = "costs:.*|backlog(:jobs)?|fair|served|vtime"
_STAYS = re.compile(rf"denoised:(queues|finishes|wake:fake|apikeys:made|{_LEARNT})|rq:queues")
_EXPIRES = re.compile(r"denoised:(idem|claim|usage|loading):.*|denoised:reap_from|rq:worker:.*")
_WORKER_LISTS = re.compile(r"rq:workers(:.*)?")


class JobCheck:
    """Looks at the accepted jobs of a run, one by one, and counts what became of them."""

    def __init__(
        self,
        redis: Redis,
        clients: Clients,
        expected: ExpectedFiles,
        blobs: Path,
        findings: Findings,
        max_attempts: int,
    ) -> None:
        self._redis = redis
        self._clients = clients
        self._expected = expected
        self._blobs = blobs
        self._findings = findings
        self._max_attempts = max_attempts
        self.endings: Counter[str] = Counter()
        self.attempts: Counter[int] = Counter()
        self.resuming = Resuming()
        self.files: set[Path] = set()

    async def run(self) -> None:
        """Checks all of them, and that there are no others."""
        waiting = asyncio.Semaphore(AT_ONCE)

        async def one(job: Accepted) -> None:
            async with waiting:
                await self._check(job)

        async with asyncio.TaskGroup() as group:
            for job in self._clients.accepted:
                group.create_task(one(job))
        known = {id_ for job in self._clients.accepted for id_ in job.ids}
        for name in self._redis.scan_iter(listing(INDEX, "*")):
            self._check_known(name, known)
        self._check_known(INDEX, known)
        for what in self.resuming.faults():
            self._findings.add("wrong", "the checkpoints", what)

    def _check_known(self, index: str | bytes, known: set[str]) -> None:
        for stored in self._redis.zrange(index, 0, -1):
            if stored.decode() not in known:
                self._findings.add("duplicated", stored.decode(), "nobody was told of this job")

    async def _check(self, job: Accepted) -> None:
        def add(head: Any, what: str) -> None:
            self._findings.add(head, f"job {job.planned.number} ({job.id})", what)

        if len(job.ids) > 1:
            add("duplicated", f"one idempotency key made {job.ids}")
        response = await self._clients.insist("GET", f"/v1/jobs/{job.id}", job.planned.api_key)
        if response.status_code != 200:
            add("lost", f"its record is answered with {response.status_code}")
            return
        record = response.json()
        status = record["status"]
        self.endings[status] += 1
        self.attempts[record["attempt"]] += 1
        if record["attempt"] > self._max_attempts:
            add("wrong", f"attempt {record['attempt']} of {self._max_attempts}")
        if status not in TERMINAL:
            add("lost", f"it is still {status}, attempt {record['attempt']}")
            return
        for head, what in ending_faults(job, record):
            add(head, what)
        events = self._events(job.id)
        for head, what in [*event_faults(events, status), *resume_faults(events, record)]:
            add(head, what)
        self.resuming.note(events, record)
        results = int(self._redis.xlen(f"rq:results:{job.id}"))
        wanted = 0 if status == "cancelled" else 1
        if results != wanted:
            add("lost" if results < wanted else "duplicated", f"it has {results} results")
        if self._redis.hexists(f"rq:job:{job.id}", "checkpoint"):
            add("wrong", "it has ended and points at a checkpoint")
        await self._check_outputs(job, record, add)

    def _events(self, job_id: str) -> list[dict[str, Any]]:
        rows = self._redis.xrange(f"denoised:ev:{job_id}")
        return [json.loads(fields[b"data"]) for _, fields in rows]

    async def _check_outputs(self, job: Accepted, record: dict[str, Any], add: Any) -> None:
        outputs, path = record["outputs"], f"/v1/jobs/{job.id}/outputs"
        api_key = job.planned.api_key
        if record["status"] != "succeeded":
            if outputs:
                add("wrong", f"it has {record['status']} and has outputs")
            response = await self._clients.insist("GET", f"{path}/0", api_key)
            if response.status_code not in (404, 410):
                add("wrong", f"its output is answered with {response.status_code}")
            return
        claimed = ClaimedJob(
            id=job.id,
            model=record["model"],
            input=record["input"],
            priority=Priority(record["priority"]),
            deterministic=record["deterministic"],
            attempt=1,
            execution_id="",
            queue="",
            created_at=datetime.now(UTC),
            queued_seconds=0.0,
        )
        files = self._expected.of(claimed)
        if len(outputs) != len(files):
            add("wrong", f"{len(outputs)} outputs instead of {len(files)}")
        for index, data in enumerate(files[: len(outputs)]):
            response = await self._clients.insist("GET", f"{path}/{index}", api_key)
            if response.status_code != 200:
                add("lost", f"output {index} is answered with {response.status_code}")
            elif response.content != data:
                add("wrong", f"output {index} differs from an undisturbed run")
        stored = json.loads(self._redis.hget(f"rq:job:{job.id}", "outputs") or b"[]")
        for output in stored:
            path = self._blobs / output["key"]
            self.files.add(path)
            stem = output["key"].rpartition(".")[0]
            self.files |= {self._blobs / f"{stem}.{name}.jpg" for name in output["variants"]}


def ending_faults(job: Accepted, record: dict[str, Any]) -> list[tuple[str, str]]:
    """What is wrong with how a job ended, as (head, sentence)."""
    status, error = record["status"], record["error"] or {}
    if status == "cancelled":
        return [] if job.cancel_asked else [("wrong", "it was cancelled, which nobody asked for")]
    ended = "succeeded" if status == "succeeded" else error.get("code")
    if ended == "deadline_exceeded" and job.deadline_seconds is not None:
        times = (datetime.fromisoformat(record[name]) for name in ("created_at", "finished_at"))
        created, finished = times
        early = job.deadline_seconds - (finished - created).total_seconds()
        return [("wrong", f"its deadline was {early:.1f} s later")] if early > 0 else []
    if ended != job.planned.ending:
        said = f": {error.get('message')}" if error else ""
        text = f"it ended as {ended} instead of {job.planned.ending}, attempt {record['attempt']}"
        return [("lost" if ended == "worker_lost" else "wrong", text + said)]
    usage = record["usage"]
    if (
        status == "succeeded"
        and usage["steps"] + usage["resumed_steps"] < (record["input"]["num_inference_steps"])
    ):
        return [("wrong", f"it succeeded after {usage}")]
    return []


def event_faults(events: list[dict[str, Any]], status: str) -> list[tuple[str, str]]:
    """What is wrong with the order of a job's events, as (head, sentence)."""
    types = [_type_of(event) for event in events]
    faults = []
    ends = [type_ for type_ in types if type_ in TERMINAL]
    if not ends:
        return [("lost", "it has no terminal event")]
    if len(ends) > 1:
        faults.append(("duplicated", f"it has {len(ends)} terminal events: {', '.join(ends)}"))
    if ends[-1] != status or types[-1] != ends[-1]:
        faults.append(("wrong", f"it is {status}, its events end with {types[-1]}"))
    if types[0] != "queued":
        faults.append(("wrong", f"its events begin with {types[0]}"))
    running = False
    for type_ in types[1:]:
        fits = {
            "queued": False,
            "loading": not running,
            "started": not running,
            "progress": running,
            "preview": running,
            "requeued": running,
            "restarted": running,
        }.get(type_, True)
        if not fits:
            where = "while it ran" if running else "while it did not run"
            faults.append(("wrong", f"its events have a {type_} {where}"))
            break
        running = type_ in ("started", "restarted", "progress", "preview")
    return faults


def _type_of(event: dict[str, Any]) -> str:
    """`loading` for what tells a job in the queue that its model is being loaded."""
    if event.get("stage") == "loading" and event["status"] == "queued":
        return "loading"
    return event["type"].removeprefix("job.")


def resume_faults(events: list[dict[str, Any]], record: dict[str, Any]) -> list[tuple[str, str]]:
    """Where steps that a checkpoint had were taken again, as (head, sentence)."""
    restarts = [event for event in events if event["type"] == "job.restarted"]
    faults = [("wrong", f"it started anew: {event['cause']}") for event in restarts]
    requeued = [event["step"] for event in events if event["type"] == "job.requeued"]
    resumed = record["usage"]["resumed_steps"]
    if record["status"] == "succeeded" and requeued and not restarts and resumed < requeued[-1]:
        faults.append(("wrong", f"it was to go on from step {requeued[-1]}, {resumed} were saved"))
    return faults


@dataclass
class Resuming:
    """How many steps checkpoints have saved, of so many jobs that lost a worker when they should
    have had one: interrupted while they had stepped for `LONG_SECONDS`.
    """

    steps: int = 0
    interrupted: int = 0

    def note(self, events: list[dict[str, Any]], record: dict[str, Any]) -> None:
        """Counts one job."""
        self.steps += record["usage"]["resumed_steps"]
        least_seconds = record["input"]["step_seconds"]
        began = reached = 0
        for event in events:
            reached = max(reached, (event.get("progress") or {}).get("step", 0))
            if event["type"] == "job.requeued":
                if (reached - began) * least_seconds >= LONG_SECONDS:
                    self.interrupted += 1
                    return
                began = reached = event["step"]

    def faults(self) -> list[str]:
        """One or two may have had the bad luck of a full disk or an absent Redis."""
        if self.interrupted < FEW or self.steps:
            return []
        return [f"{self.interrupted} long jobs lost their workers, no step was saved"]


def lease_faults(redis: Redis) -> list[tuple[str, str]]:
    """Leases, waiting entries and deadlines that are left when every job has ended, as (key,
    sentence).
    """
    faults = [
        (key, f"{left} is left")
        for key in (LEASES, "denoised:deadlines")
        for left in redis.zrange(key, 0, -1)
    ]
    for key in redis.scan_iter("denoised:held:*"):
        faults += [(key.decode(), f"{left} is held") for left in redis.smembers(key)]
    for queue in redis.smembers(QUEUES) | redis.smembers("denoised:lanes"):
        name = queue.decode()
        faults += [
            (name, f"{id_!r} still waits") for id_ in redis.lrange(f"rq:queue:{name}", 0, -1)
        ]
        faults += [(name, f"{left!r} is left") for left in redis.zrange(f"rq:wip:{name}", 0, -1)]
    return faults


def file_faults(blobs: Path, needed: set[Path]) -> list[tuple[str, str]]:
    """Files that nobody needs, checkpoints among them, and needed ones that are not there."""
    there = {path for path in blobs.rglob("*") if path.is_file()} if blobs.exists() else set()
    faults = [(str(path.relative_to(blobs)), "is left behind") for path in there - needed]
    return faults + [(str(path.relative_to(blobs)), "is gone") for path in needed - there]


def key_faults(redis: Redis) -> list[tuple[str, str]]:
    """Keys that are left when every job has been deleted, as (key, sentence)."""
    faults = []
    if due := redis.zcard(EXPIRY):
        faults.append((EXPIRY, f"{due} jobs are due and still there"))
    for raw in redis.scan_iter(count=1000):
        key = raw.decode()
        if _STAYS.fullmatch(key) or key == EXPIRY:
            continue
        if _EXPIRES.fullmatch(key):
            if redis.ttl(key) == -1:
                faults.append((key, "never expires"))
        elif _WORKER_LISTS.fullmatch(key):
            # A killed worker stays listed for as long as its own key lives.
            gone = [name for name in redis.smembers(key) if not redis.exists(name)]
            faults += [(key, f"{name!r} is listed and gone") for name in gone]
        else:
            faults.append((key, "is left behind"))
    return faults
