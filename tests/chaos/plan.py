"""What a chaos run is to do: jobs and blows with their times, drawn from one seed.

Pure: the same numbers in, the same `Plan` out. Times are seconds from the start of the run. How a
run goes also depends on the machine; what it does to it does not.
"""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

WORKERS = ("worker-0", "worker-1", "worker-2")
KEEPERS = ("keeper-0", "keeper-1")
KEYED_API, OPEN_API = APIS = ("api-0", "api-1")
"""One asks for API keys, the other for none and serves those who have none."""

API_KEYS = 2
"""How many there are; some jobs come without any."""

AMPLE_SECONDS = 1800.0
"""A deadline that every job meets, and none would if clocks that jump by an hour were asked."""

OUTAGES = (2.0, 15.0, 45.0, 0.0, 2.0)
"""Seconds for which Redis is away, in turn; 0 is a kill with a restart at once."""

JOB_SPAN = 0.9
"""Share of the run in which jobs are submitted; the rest sees them end."""

BlowKind = Literal[
    "kill",  # SIGKILL
    "stop",  # SIGTERM; the process is started again when it has ended
    "freeze",  # SIGSTOP, and SIGCONT after `seconds`
    "clock",  # the clocks of the process jump by `seconds`
    "redis-kill",  # SIGKILL to Redis, started again after `seconds`
    "redis-freeze",  # SIGSTOP to Redis, SIGCONT after `seconds`
    "disk-full",  # nothing can be stored for `seconds`
    "disk-slow",  # every file takes longer for `seconds`
]

_DISK_TROUBLES: tuple[BlowKind, ...] = ("disk-full", "disk-slow")


@dataclass(frozen=True)
class PlannedJob:
    """A job and the end it must come to.

    `ending` is "succeeded" or the code of the failure. With `cancel_after` seconds it may also be
    cancelled, and with `deadline_seconds` be stopped when they are over. `sent_twice`: the client
    asks again though it has had its answer. `api_key`: the number of its API key, None without.
    """

    number: int
    at: float
    input: dict[str, Any]
    priority: str
    deterministic: bool
    ending: str = "succeeded"
    cancel_after: float | None = None
    sent_twice: bool = False
    api_key: int | None = None
    deadline_seconds: float | None = None


@dataclass(frozen=True)
class Blow:
    """Something that goes wrong. `target` is a process, or "" for Redis and the disk.

    `delay`: by how much longer a file takes on a slow disk.
    """

    at: float
    kind: BlowKind
    target: str = ""
    seconds: float = 0.0
    delay: float = 0.0


@dataclass(frozen=True)
class Plan:
    """Everything that a run does, in order of time."""

    seed: int
    jobs: tuple[PlannedJob, ...]
    blows: tuple[Blow, ...] = field(default=())

    @property
    def digest(self) -> str:
        """The same for the same plan."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]

    def count(self, failure: str) -> int:
        """How many jobs are to fail in this way."""
        return sum(job.input.get("failure") == failure for job in self.jobs)


def make_plan(
    seed: int,
    *,
    jobs: int,
    kills: int,
    outages: int,
    seconds_per_kill: float = 2.5,
    outage_scale: float = 1.0,
    lease_seconds: float = 2.5,
) -> Plan:
    """A run of `kills` * `seconds_per_kill` seconds.

    To the kills come a quarter as many freezes, as many stops, a tenth as many jumps of clocks and
    troubles with the disk. Outages last `OUTAGES` times `outage_scale`.
    """
    chance = random.Random(seed)
    seconds = max(10.0, kills * seconds_per_kill)
    blows = [*_blows(chance, seconds, kills, lease_seconds)]
    blows += _troubles_with_the_disk(chance, seconds, -(-kills // 10))
    blows += _outages(chance, seconds, outages, outage_scale)
    planned = [_job(chance, number, seconds * JOB_SPAN, jobs) for number in range(jobs)]
    return Plan(
        seed,
        tuple(sorted(planned, key=lambda job: job.at)),
        tuple(sorted(blows, key=lambda blow: blow.at)),
    )


def _blows(chance: random.Random, seconds: float, kills: int, lease: float) -> list[Blow]:
    def at() -> float:
        return seconds * chance.random()

    def anyone() -> str:
        # Workers hold the jobs, so most of it hits them.
        return chance.choice((*WORKERS, *WORKERS, *WORKERS, *KEEPERS, *APIS))

    blows = [Blow(at(), "kill", anyone()) for _ in range(kills)]
    for _ in range(-(-kills // 4)):
        blows.append(Blow(at(), "stop", anyone()))
        blows.append(Blow(at(), "freeze", anyone(), lease * chance.uniform(0.3, 2.0)))
    for _ in range(-(-kills // 10)):
        jump = chance.choice((-86_400.0, -5.0, 5.0, 3600.0, 86_400.0))
        blows.append(Blow(at(), "clock", anyone(), jump))
    return blows


def _troubles_with_the_disk(chance: random.Random, seconds: float, count: int) -> list[Blow]:
    """One of each kind in each part of the run: never longer together than workers wait."""
    blows = []
    for number in range(count):
        for kind in _DISK_TROUBLES:
            at = seconds * (number + 0.5 * chance.random()) / count
            longest = min(4.0, 0.4 * seconds / count)
            blows.append(Blow(at, kind, seconds=chance.uniform(0.2, 1.0) * longest, delay=0.2))
    return blows


def _outages(chance: random.Random, seconds: float, count: int, scale: float) -> list[Blow]:
    """One in each part of the run, so that they never overlap in a run of any length."""
    blows = []
    for number in range(count):
        away = OUTAGES[number % len(OUTAGES)] * scale
        at = seconds * (number + 0.5 * chance.random()) / count
        frozen = away > 0 and chance.random() < 0.5
        blows.append(Blow(at, "redis-freeze" if frozen else "redis-kill", seconds=away))
    return blows


def _job(chance: random.Random, number: int, span: float, jobs: int) -> PlannedJob:
    at = span * chance.random()
    given: dict[str, Any] = {
        "prompt": f"job {number}",
        "seed": chance.randrange(2**31),
        "num_inference_steps": chance.randint(2, 12),
        "num_images": chance.choice((1, 1, 1, 2, 3)),
        "width": chance.choice((32, 64)),
        "step_seconds": chance.choice((0.0, 0.002, 0.005, 0.02, 0.05)),
    }
    ending, cancel_after, deadline_seconds = "succeeded", None, None
    # A few of the worst in every run, however short. They come early: each takes a worker down with
    # every attempt, which takes its time.
    if number < max(1, jobs // 500):
        ending, at, given["failure"] = "worker_lost", 0.5 * at, "crash"
    elif number < max(1, jobs // 500) + jobs // 1000:
        ending, at, given["failure"] = "worker_lost", 0.5 * at, "hang"
    else:
        kind = chance.random()
        if kind < 0.02:
            ending, given["failure"] = "internal", "error"
        elif kind < 0.03:
            ending, given["failure"] = "out_of_memory", "out_of_memory"
        elif kind < 0.05:
            given["failure"] = "out_of_memory"
            given["failure_above_images"] = given["num_images"]
        elif kind < 0.12:
            cancel_after = chance.uniform(0.0, 1.5)
            given |= {"num_inference_steps": 20, "step_seconds": 0.05}
        elif kind < 0.14:
            given |= {"num_inference_steps": 40, "step_seconds": chance.uniform(0.05, 0.1)}
        elif kind < 0.18:
            deadline_seconds = chance.uniform(1.5, 4.0)
            given |= {"num_inference_steps": 20, "step_seconds": 0.05}
        elif kind < 0.25:
            deadline_seconds = AMPLE_SECONDS
    if given.get("failure") in ("crash", "hang", "error"):
        given["failure_step"] = chance.randint(1, given["num_inference_steps"])
    return PlannedJob(
        number=number,
        at=at,
        input=given,
        priority=chance.choice(("interactive", "standard", "standard", "batch")),
        deterministic=chance.random() < 0.2,
        ending=ending,
        cancel_after=cancel_after,
        sent_twice=chance.random() < 0.1,
        api_key=chance.choice((None, *range(API_KEYS))),
        deadline_seconds=deadline_seconds,
    )
