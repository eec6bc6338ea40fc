"""One chaos run from plan to verdict; `python -m tests.chaos` is what `make chaos` runs.

A deployment of real processes over a Redis of its own is set up in a temporary folder, clients
submit the plan's jobs over HTTP while the plan's blows fall, and when every job has ended, or none
has for long enough, everything is checked and taken down again. The last line printed sums it up.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

from config.settings import Settings
from denoised.supervisor import STOP_SECONDS
from jobs.api_keys import KeyStore, Quotas
from jobs.blobs import FileBlobStore
from jobs.connections import SOCKET_TIMEOUT, connect
from jobs.keeper import Keeper
from models.catalogue import discover
from tests.chaos.attack import Attack
from tests.chaos.checks import JobCheck, file_faults, key_faults, lease_faults
from tests.chaos.clients import Accepted, Clients
from tests.chaos.ends import end_faults
from tests.chaos.expected import ExpectedFiles
from tests.chaos.fleet import UP_SECONDS, Fleet
from tests.chaos.launcher import SABOTAGES
from tests.chaos.plan import API_KEYS, APIS, KEEPERS, WORKERS, Plan, make_plan
from tests.chaos.verdict import Findings, Report

LEASE_SECONDS = 2.5
MAX_ATTEMPTS = 8
"""More than a sound job can lose by chance while workers are killed every few seconds."""

DRAIN_SECONDS = 1.5

STOP_WITHIN_SECONDS = DRAIN_SECONDS + STOP_SECONDS + 2 * LEASE_SECONDS + 2 * SOCKET_TIMEOUT
"""When `denoised serve` would have killed a worker; and it may have been frozen meanwhile for two
leases, and have waited for a frozen Redis.
"""

QUOTAS = (Quotas(), Quotas(max_running=4))
"""Of the API keys. Who is held to so many stands still when ended jobs stay among them."""

SETTINGS = {
    "MODELS": "fake",
    "DEVICE": "cpu",
    "WORKERS": str(len(WORKERS)),
    "MAX_BATCH_IMAGES": "8",
    "LEASE_SECONDS": str(LEASE_SECONDS),
    "HEARTBEAT_SECONDS": "0.6",
    "REAP_SECONDS": "0.2",
    "STEP_TIMEOUT_SECONDS": "12",
    "DRAIN_SECONDS": str(DRAIN_SECONDS),
    "MAX_ATTEMPTS": str(MAX_ATTEMPTS),
    # Only the longest jobs of a plan get any.
    "CHECKPOINT_SECONDS": "0.5",
    # Nothing may expire before it has been looked at.
    "RESULT_TTL_SECONDS": "86400",
    "EVENT_TTL_SECONDS": "86400",
}

POLL_SECONDS = 0.5


Strike = Callable[[Fleet], Awaitable[None]]
"""A blow that waits for its moment."""


async def run_plan(
    plan: Plan,
    folder: Path,
    *,
    sabotage: str | None = None,
    strike: Strike | None = None,
    patience_seconds: float = 90.0,
) -> Report:
    """Carries a plan out in `folder`, which is empty; logs of all processes stay there.

    After the plan's blows falls `strike`. When that is over, waits for the rest of the jobs for as
    long as one ends at least every `patience_seconds`.
    """
    began = time.monotonic()
    [spec] = discover(["fake"])
    findings = Findings()
    expected = ExpectedFiles(spec, folder / "digests.json")
    async with AsyncExitStack() as stack:
        fleet = await stack.enter_async_context(Fleet(folder, SETTINGS, sabotage))
        with connect(fleet.redis.url) as redis:
            made = [KeyStore(redis).create(f"key {n}", QUOTAS[n]) for n in range(API_KEYS)]
        tokens = [token for _, token in made]
        clients = await stack.enter_async_context(Clients(fleet.urls, tokens, plan))
        async with asyncio.timeout(UP_SECONDS):
            await clients.ready(len(WORKERS))
        attack = Attack(fleet, plan)
        submitting = asyncio.create_task(clients.run())
        await attack.run()
        if strike is not None:
            async with asyncio.timeout(UP_SECONDS):
                await strike(fleet)
        try:
            async with asyncio.timeout(patience_seconds):
                await submitting
        except TimeoutError:
            findings.add("lost", "the server", "it does not take all jobs")
        await _all_ended(fleet, clients.accepted, patience_seconds)
        # Whoever has just come back has so long to do harm.
        await asyncio.sleep(LEASE_SECONDS)
        blobs = Path(fleet.env["DENOISED_DATA_DIR"]) / "blobs"
        with connect(fleet.redis.url) as redis:
            check = JobCheck(redis, clients, expected, blobs, findings, MAX_ATTEMPTS)
            await check.run()
            await fleet.stop(*WORKERS)
            await _check_leftovers(fleet, clients, check, blobs, findings)
    for subject, what in end_faults(
        fleet.ends,
        hangs=MAX_ATTEMPTS * plan.count("hang"),
        crashes=MAX_ATTEMPTS * plan.count("crash"),
        stop_seconds=STOP_WITHIN_SECONDS,
    ):
        findings.add("wrong", subject, what)
    return Report(
        seed=plan.seed,
        plan_digest=plan.digest,
        jobs=len(clients.accepted),
        kills=attack.kills,
        outages=attack.outages,
        seconds=time.monotonic() - began,
        findings=findings,
        blows=attack.done,
        endings=check.endings,
        attempts=check.attempts,
        retries=clients.retries,
        refused_deadlines=clients.refused,
        resumed_steps=check.resuming.steps,
        interrupted=check.resuming.interrupted,
        longest_stop=max((end.seconds for end in fleet.ends), default=0.0),
    )


async def _all_ended(fleet: Fleet, accepted: list[Accepted], patience_seconds: float) -> None:
    ended, since = -1, time.monotonic()
    with connect(fleet.redis.url) as redis:
        while time.monotonic() - since < patience_seconds:
            pipeline = redis.pipeline(transaction=False)
            for job in accepted:
                pipeline.hget(f"rq:job:{job.id}", "status")
            states = pipeline.execute()
            now = sum(state in (b"finished", b"failed", b"canceled") for state in states)
            if now == len(accepted):
                return
            if now != ended:
                ended, since = now, time.monotonic()
            await asyncio.sleep(POLL_SECONDS)


async def _check_leftovers(
    fleet: Fleet, clients: Clients, check: JobCheck, blobs: Path, findings: Findings
) -> None:
    settings = Settings(
        redis_url=fleet.redis.url,
        data_dir=blobs.parent,
        lease_seconds=LEASE_SECONDS,
        heartbeat_seconds=0.6,
    )
    with connect(fleet.redis.url) as redis:
        # Gives what was left no time of grace.
        keeper = Keeper(
            redis, settings, FileBlobStore(blobs), orphan_grace_seconds=0, sweep_seconds=0
        )
        keeper.run_once()
        for subject, what in [*lease_faults(redis), *file_faults(blobs, check.files)]:
            findings.add("wrong", subject, what)
        for job in clients.accepted:
            for id_ in job.ids:
                await clients.insist("DELETE", f"/v1/jobs/{id_}", job.planned.api_key)
        await fleet.stop(*APIS, *KEEPERS)
        for api_key in (keys := KeyStore(redis)).all():
            keys.revoke(api_key.id)
        # One round forgets a hundred jobs.
        while keeper.run_once().expired:
            pass
        for subject, what in [*key_faults(redis), *file_faults(blobs, set())]:
            findings.add("wrong", subject, f"{what} after all jobs were deleted")


def main(arguments: list[str] | None = None) -> int:
    """Runs with what the command line says; 0 if nothing was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--outages", type=int, default=5)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--seconds-per-kill", type=float, default=2.5)
    parser.add_argument(
        "--outage-scale", type=float, default=1.0, help="1: Redis is away for 2, 15 and 45 s"
    )
    parser.add_argument("--sabotage", choices=SABOTAGES, help="switch a safeguard off")
    parser.add_argument("--folder", type=Path, help="keep everything here instead of deleting it")
    given = parser.parse_args(arguments)
    plan = make_plan(
        given.seed,
        jobs=given.jobs,
        kills=given.kills,
        outages=given.outages,
        seconds_per_kill=given.seconds_per_kill,
        outage_scale=given.outage_scale,
        lease_seconds=LEASE_SECONDS,
    )
    print(
        f"seed {given.seed}, plan {plan.digest}: {len(plan.jobs)} jobs and {len(plan.blows)} blows "
        f"in {plan.blows[-1].at if plan.blows else 0:.0f} s",
        flush=True,
    )
    folder = given.folder or Path(tempfile.mkdtemp(prefix="chaos-"))
    report = asyncio.run(run_plan(plan, folder, sabotage=given.sabotage))
    for line in [*report.details(), *report.findings.lines()]:
        print(line)
    if report.is_clean and given.folder is None:
        shutil.rmtree(folder)
    else:
        print(f"logs are in {folder / 'logs'}")
    print(report.summary(), flush=True)
    return 0 if report.is_clean else 1
