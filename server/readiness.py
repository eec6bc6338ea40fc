"""Whether a job submitted now would make progress, and if not, why.

Looks at Redis, at the workers that announced themselves there, and at when each last got something
done: busy is not dead, silent is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from jobs.errors import StoreUnavailable
from jobs.worker_registry import WorkerInfo, list_workers
from server.schemas import Readiness, Reason
from server.services import Services

ANSWER_SECONDS = 2.0
"""A probe that waits longer than this for Redis calls it unavailable."""


async def readiness(services: Services) -> Readiness:
    """The state now; ready when `reasons` is empty."""
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            await services.store.ping()
            workers = await list_workers(services.redis)
    except (StoreUnavailable, TimeoutError):
        reason = Reason(code="store_unavailable", message="Redis does not answer.")
        return Readiness(status="unavailable", reasons=[reason], workers=0, models=[])
    reasons = reasons_against(
        workers,
        now=datetime.now(UTC),
        patience=timedelta(seconds=services.settings.step_timeout_seconds),
        lease_seconds=services.settings.lease_seconds,
    )
    if services.stopping.is_set():
        reasons.insert(0, Reason(code="stopping", message="This server is shutting down."))
    return Readiness(
        status="unavailable" if reasons else "ready",
        reasons=reasons,
        workers=len(workers),
        models=sorted({model for w in workers for model in (*w.models, *w.on_demand)}),
    )


def reasons_against(
    workers: Sequence[WorkerInfo], *, now: datetime, patience: timedelta, lease_seconds: float
) -> list[Reason]:
    """Why none of these workers would take a job forward; empty if one would.

    One that has said nothing for `lease_seconds` has lost its jobs, whatever it said before.
    """
    if not workers:
        return [Reason(code="no_worker", message="No worker is alive.")]
    reasons = []
    for worker in workers:
        if worker.silent_seconds > lease_seconds:
            silence = f"was last heard of {worker.silent_seconds} s ago"
            reasons.append(_reason("no_worker", worker, silence))
        elif worker.state == "draining":
            reasons.append(_reason("no_worker", worker, "is draining"))
        elif worker.state == "starting" or not (worker.models or worker.on_demand):
            why = "; ".join(f"{m}: {e}" for m, e in sorted(worker.model_errors.items()))
            reasons.append(_reason("no_model", worker, why or "is still loading its models"))
        elif worker.state == "busy" and now - _last_sign(worker) > patience:
            reasons.append(
                _reason(
                    "no_progress",
                    worker,
                    f"has finished no step for more than {patience.total_seconds():g} s",
                )
            )
        else:
            return []
    return reasons


def _last_sign(worker: WorkerInfo) -> datetime:
    return worker.last_progress_at or worker.started_at


def _reason(code: str, worker: WorkerInfo, message: str) -> Reason:
    return Reason.model_validate({"code": code, "message": f"Worker {worker.name}: {message}."})
