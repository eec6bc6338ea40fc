"""Redis over a day of a million jobs, with time scaled: does what the job layer keeps stay bounded?

The day's 24 hours pass in `wall_seconds`. Arrivals, retention, event logs and idempotency keys are
scaled alike, so that as many records are resident at a time as on a true day with the same
settings: arrivals per second times seconds kept. Two settings are not the defaults: results are
kept for `retention_hours` instead of 24, so that the day has a steady state at all, and a job has
four steps. Leases and the keys that remember a claim are not scaled, so more of these are resident
than on a true day, and the memory shown is above the true one by that.

Memory is read every hour. What waiting jobs take, as weighed before the day, is left out; the rest
is fitted as constant + records + event logs + hours: the last is growth that nothing resident
explains, and must stay below `MOST_GROWTH` of the mean over a day. Jobs wait in great numbers only
on a machine that cannot keep pace in the busiest hours. At the end everything expires, and only the
keys that `jobs.keys` calls lasting may be left.
"""

from __future__ import annotations

import asyncio
import logging
import math
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from redis import Redis

from bench.day_load import DAY_HOURS, STEPS, Clock, Load, is_quiet
from bench.goals import holds, none
from config.model_spec import ModelSpec
from config.settings import Settings
from jobs import keys
from jobs.api_keys import KeyStore
from jobs.connections import connect
from jobs.embedded_redis import EmbeddedRedis
from models.fake.spec import spec_fields

MOST_GROWTH = 0.05
"""Of the mean memory in a day."""

SAMPLED_KEYS = 200
"""Keys of a kind whose size is asked for."""

FAMILIES = (
    *("rq:job:", "rq:results:", "rq:queue:", "rq:wip:", "rq:finished:", "rq:failed:"),
    *("rq:canceled:", "rq:workers:", "rq:worker:", "denoised:ev:", "denoised:wake:"),
    *("denoised:claim:", "denoised:idem:", "denoised:jobs:", "denoised:held:", "denoised:usage:"),
    *("denoised:costs:", "denoised:apikey:", "denoised:loading:"),
)
"""How the keys begin of which there are many; see the table in `jobs.keys`."""

LASTING = frozenset(
    {"rq:queues", "denoised:queues", "denoised:finishes", "denoised:vtime", "denoised:fair"}
    | {"denoised:served", "denoised:backlog", "denoised:backlog:jobs", "denoised:costs:"}
    | {"denoised:apikey:", "denoised:apikeys", "denoised:apikeys:made"}
)
"""What `jobs.keys` says is kept for ever: so much for a queue, a model, an API key."""

API_KEYS = 3
PATIENCE_SECONDS = 600.0
"""Longest wait for what waits at the end of the day, and for its results to expire."""

LAST_SECONDS = 10.0
"""From the expiry of the last result to the moment when nothing else of the day may be left."""


@dataclass(frozen=True)
class Plan:
    """A scaled day: how many jobs, in how many seconds, and how many of its hours results stay.

    `weighed` more wait before it begins, to learn what one takes.
    """

    jobs: int = 1_000_000
    wall_seconds: float = 2700.0
    retention_hours: float = 2.0
    lease_seconds: float = 6.0
    weighed: int = 2000
    seed: int = 1

    @property
    def scale(self) -> float:
        """Simulated seconds that pass in one."""
        return DAY_HOURS * 3600 / self.wall_seconds

    def settings(self, redis_url: str) -> Settings:
        """The defaults with all times scaled; Redis keeps whole seconds."""

        def scaled(seconds: float) -> int:
            return max(math.ceil(seconds / self.scale), 1)

        defaults = Settings()
        return Settings(
            redis_url=redis_url,
            max_queued_jobs=10**6,
            lease_seconds=self.lease_seconds,
            heartbeat_seconds=self.lease_seconds / 4,
            reap_seconds=max(defaults.reap_seconds / self.scale, 0.02),
            result_ttl_seconds=scaled(self.retention_hours * 3600),
            idempotency_ttl_seconds=scaled(self.retention_hours * 3600),
            event_ttl_seconds=scaled(defaults.event_ttl_seconds),
        )


@dataclass(frozen=True)
class Sample:
    """Redis at one moment: bytes used, jobs that have ended and are kept, event logs of those, and
    jobs that wait.
    """

    hour: float
    used: int
    records: int
    logs: int
    waiting: int
    keys: int


def take_sample(redis: Redis, settings: Settings, hour: float) -> Sample:
    """The figures now."""
    seconds, _ = redis.time()  # type: ignore[misc]
    logged = seconds + settings.result_ttl_seconds - settings.event_ttl_seconds
    return Sample(
        hour,
        int(redis.info("memory")["used_memory"]),  # type: ignore[index]
        int(redis.zcard(keys.EXPIRY)),  # type: ignore[arg-type]
        int(redis.zcount(keys.EXPIRY, logged, "+inf")),  # type: ignore[arg-type]
        sum(int(redis.llen(name)) for name in redis.smembers("rq:queues")),  # type: ignore
        int(redis.dbsize()),  # type: ignore[arg-type]
    )


def kind_of(key: str) -> str:
    """A key's family, as the table in `jobs.keys` names it."""
    return next((name for name in FAMILIES if key.startswith(name)), key)


def keys_by_kind(redis: Redis) -> list[dict[str, Any]]:
    """How many keys of each family there are, and the mean size of some of them."""
    count: Counter[str] = Counter()
    sampled: dict[str, list[bytes]] = {}
    for key in redis.scan_iter(count=1000):
        kind = kind_of(key.decode())
        count[kind] += 1
        if count[kind] <= SAMPLED_KEYS:
            sampled.setdefault(kind, []).append(key)
    rows = []
    for kind, number in sorted(count.items()):
        sizes = [redis.memory_usage(key, samples=0) for key in sampled[kind]]
        known = [int(size) for size in sizes if size]  # type: ignore[arg-type]
        mean = sum(known) / max(len(known), 1)
        rows.append({"kind": kind, "keys": number, "mean_bytes": round(mean)})
    return rows


def leaked(redis: Redis) -> list[str]:
    """Keys that should have gone: neither lasting nor about to expire."""
    return sorted(
        key.decode()
        for key in redis.scan_iter(count=1000)
        if kind_of(key.decode()) not in LASTING and redis.ttl(key) == -1
    )


def growth(samples: list[Sample], waiting_bytes: float) -> float:
    """Bytes per hour that neither records, nor their event logs, nor waiting jobs explain."""
    rows = [[1.0, s.records, s.logs, s.hour] for s in samples]
    used = [s.used - waiting_bytes * s.waiting for s in samples]
    fitted, *_ = np.linalg.lstsq(np.array(rows), np.array(used), rcond=None)
    return float(fitted[-1])


async def _until(
    is_so: Callable[[], object], what: str, load: Load, patience: float = PATIENCE_SECONDS
) -> None:
    deadline = time.monotonic() + patience
    while not is_so():
        load.check()
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not after {patience:.0f} s")
        await asyncio.sleep(0.1)


async def _pass_day(
    load: Load, plan: Plan, redis: Redis, settings: Settings, clock: Clock
) -> list[Sample]:
    """Samples at the 24 hours; all jobs have come by the end, on a late machine after them."""
    arrivals = asyncio.create_task(load.arrive(clock, plan.jobs))
    samples: list[Sample] = []
    for hour in range(1, int(DAY_HOURS) + 1):
        wait = (hour - clock.hour) * 3600 / clock.scale
        await asyncio.sleep(max(wait, 0.0))
        load.check()
        samples.append(take_sample(redis, settings, clock.hour))
        _print_row(samples[-1])
    await arrivals
    return samples


def _print_row(sample: Sample) -> None:
    print(
        f"  hour {sample.hour:5.1f}  {sample.used / 1e6:8.1f} MB  {sample.records:8d} records"
        f"  {sample.logs:7d} event logs  {sample.waiting:7d} waiting  {sample.keys:8d} keys",
        flush=True,
    )


async def _simulate(plan: Plan, url: str, folder: Path) -> dict[str, Any]:
    settings = plan.settings(url)
    spec = ModelSpec(id="fake", source=folder, **spec_fields())
    with connect(url) as redis:
        key_store = KeyStore(redis)
        owners = [key_store.create(f"tenant {n}")[0].id for n in range(API_KEYS)]
        load = Load(url, settings, spec, owners, seed=plan.seed, scale=plan.scale)
        empty = take_sample(redis, settings, 0)
        await load.queue_up(plan.jobs, plan.weighed)
        queued = take_sample(redis, settings, 0)
        load.start(folder / "blobs")
        try:
            clock = Clock(plan.scale, time.monotonic())
            samples = await _pass_day(load, plan, redis, settings, clock)
            await _until(lambda: is_quiet(redis), "the queue is empty", load)
            seconds = time.monotonic() - clock.began
            kinds = keys_by_kind(redis)
            await asyncio.sleep(settings.event_ttl_seconds + 1)
            records_only = take_sample(redis, settings, clock.hour)
            await _until(lambda: not redis.exists(keys.EXPIRY), "all has expired", load)
            with suppress(TimeoutError):
                await _until(lambda: not leaked(redis), "nothing is left", load, LAST_SECONDS)
        finally:
            load.stop()
        gone = take_sample(redis, settings, clock.hour)
        left, lost = keys_by_kind(redis), leaked(redis)
        for key_id in owners:
            key_store.revoke(key_id)
    others = (empty, queued, records_only, gone)
    return _figures(plan, settings, load, samples, others, seconds) | {
        "keys by kind when the last job ended": kinds,
        "keys left after everything expired": left,
        "leaked keys": lost,
    }


def _figures(
    plan: Plan,
    settings: Settings,
    load: Load,
    samples: list[Sample],
    others: tuple[Sample, Sample, Sample, Sample],
    seconds: float,
) -> dict[str, Any]:
    empty, queued, records_only, gone = others
    waiting_bytes = (queued.used - empty.used) / queued.waiting
    # The hours before fill up.
    steady = [s for s in samples if s.hour > plan.retention_hours + 0.5]
    figures: dict[str, Any] = {
        "jobs": load.counts["jobs"],
        "seconds": seconds,
        "jobs per second": load.counts["jobs"] / seconds,
        "simulated seconds per second": plan.scale,
        "kept for (simulated hours)": settings.result_ttl_seconds * plan.scale / 3600,
        "steps per job": STEPS,
        "most arrivals behind the clock": load.most_waiting,
        "what happened": dict(sorted(load.counts.items())),
        "hours": [
            {
                "hour": round(s.hour, 2),
                "MB": s.used / 1e6,
                "records": s.records,
                "waiting": s.waiting,
                "keys": s.keys,
            }
            for s in samples
        ],
        "peak MB": max((s.used for s in samples), default=0) / 1e6,
        "MB before": empty.used / 1e6,
        "MB after everything expired": gone.used / 1e6,
        "bytes per waiting job": waiting_bytes,
    }
    if records_only.records:
        per_record = (records_only.used - gone.used) / records_only.records
        figures["bytes per resident job"] = per_record
        figures["most resident at a time"] = max((s.records for s in samples), default=0)
        figures["so a million a day, kept for 24 h, take GB"] = per_record / 1e3
    if len(steady) > 5:
        mean = sum(s.used for s in steady) / len(steady)
        share = growth(steady, waiting_bytes) * DAY_HOURS / mean
        figures["unexplained growth, % of the mean a day"] = 100 * share
        figures["allowed, %"] = 100 * MOST_GROWTH
    return figures


def is_steady(figures: dict[str, Any]) -> bool:
    """Whether memory did not grow in the steady state."""
    grown = figures.get("unexplained growth, % of the mean a day", math.inf)
    return bool(grown <= 100 * MOST_GROWTH)


def simulate(plan: Plan) -> dict[str, Any]:
    """One scaled day on a Redis of its own; the figures."""
    # It tells of every job that it takes back.
    logging.getLogger("jobs.keeper").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as name, EmbeddedRedis.start(Path(name) / "redis") as server:
        return asyncio.run(_simulate(plan, server.url, Path(name)))


def run(plan: Plan | None = None) -> dict[str, Any]:
    """The day's figures; memory must not have grown, nor keys have leaked."""
    figures = simulate(plan or Plan())
    goals = [
        holds("memory is bounded", is_steady(figures)),
        none("leaked keys", len(figures["leaked keys"])),
    ]
    return {**figures, "goals": goals}


def main() -> int:
    """Prints the figures; 1 when memory is not bounded. Arguments: jobs, seconds for the day."""
    from bench.run import report

    numbers = [float(text) for text in sys.argv[1:3]]
    return report(run(Plan(int(numbers[0]), *numbers[1:]) if numbers else Plan()))


if __name__ == "__main__":
    sys.exit(main())
