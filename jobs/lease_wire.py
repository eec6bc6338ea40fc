"""What the scripts of the lease protocol take and give, to and from the types of this package.

`jobs.lease` makes the calls; here the arguments are laid out as the comment at the top of each
script says, and replies are read. Nothing here talks to Redis.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import astuple

from jobs import keys
from jobs.costs import Shape
from jobs.event_log import preview_fragment, progress_fragment
from jobs.rq_record import (
    TO_RQ,
    encode_return_value,
    encode_trace,
    parse_time,
    public_outputs,
    time_from_us,
)
from jobs.scripts import Argument
from jobs.types import Checkpoint, ClaimedJob, Outcome, Progress, Usage, Verdict

_VERDICTS = {0: Verdict.LEASE_LOST, 1: Verdict.CONTINUE, 2: Verdict.CANCEL}


def claimed_job(fields: Sequence[bytes | None], now_us: int) -> tuple[ClaimedJob, bytes]:
    """A job that the claim script granted at `now_us`, without its input; and the call with that.

    The model is empty when the record was not made by our submit script.
    """
    job_id, execution_id, queue, data, model, deterministic, attempt = (
        (field or b"") for field in fields[:7]
    )
    created_at, enqueued_at = (
        parse_time(text.decode()) if text else time_from_us(now_us) for text in fields[7:9]
    )
    job = ClaimedJob(
        id=job_id.decode(),
        model=model.decode(),
        input={},
        priority=keys.split_queue_name(queue.decode())[1],
        deterministic=deterministic == b"1",
        attempt=int(attempt),
        execution_id=execution_id.decode(),
        queue=queue.decode(),
        created_at=created_at,
        queued_seconds=max((time_from_us(now_us) - enqueued_at).total_seconds(), 0.0),
        checkpoint=_checkpoint(*fields[9:12]),
    )
    return job, data


def progress_arguments(update: Progress, lease_seconds: float) -> list[Argument]:
    """For the progress script: a report."""
    return [
        update.job.id,
        update.job.execution_id,
        lease_seconds,
        update.stage.value,
        update.step,
        update.total_steps,
        "" if update.eta_seconds is None else round(update.eta_seconds, 3),
        progress_fragment(update) if update.event else "",
        preview_fragment(update) if update.preview is not None else "",
    ]


def beat_arguments(job: ClaimedJob, lease_seconds: float) -> list[Argument]:
    """For the progress script: no news but that the worker lives."""
    return [job.id, job.execution_id, lease_seconds, "", "", "", "", "", ""]


def verdict_of(reply: int | Exception) -> Verdict:
    """What the progress script says. Raises the reply if it is an exception."""
    if isinstance(reply, Exception):
        raise reply
    return _VERDICTS[reply]


def finish_arguments(
    job: ClaimedJob, outcome: Outcome, result_ttl_seconds: float, event_ttl_seconds: float
) -> list[Argument]:
    """For the finish script."""
    error = outcome.failure.model_dump_json() if outcome.failure else ""
    outputs = [output.model_dump(mode="json") for output in outcome.outputs]
    fragment = f',"outputs":{json.dumps(public_outputs(outputs))}'
    trace = ""
    if outcome.failure is not None:
        fragment = f',"error":{error}'
        trace = encode_trace(f"{outcome.failure.code.value}: {outcome.failure.message}")
    return [
        job.id,
        job.execution_id,
        TO_RQ[outcome.status],
        error,
        json.dumps(outputs) if outputs else "",
        fragment,
        encode_return_value(outcome.outputs),
        trace,
        *usage_arguments(outcome.usage),
        result_ttl_seconds,
        event_ttl_seconds,
        *_costs(job, outcome),
    ]


def usage_arguments(usage: Usage | None) -> tuple[float | str, int, int]:
    """For every script that books what an attempt has cost."""
    if usage is None:
        return "", 0, 0
    return usage.gpu_seconds, usage.steps, usage.resumed_steps


def _checkpoint(key: bytes | None, step: bytes | None, sha256: bytes | None) -> Checkpoint | None:
    if key is None:
        return None
    return Checkpoint(key.decode(), int(step or 0), (sha256 or b"").decode())


def _costs(job: ClaimedJob, outcome: Outcome) -> list[Argument]:
    """What the finish script learns from, or that there is nothing."""
    costs = outcome.costs
    if costs is None:
        return [""]
    steps = outcome.usage.steps
    run_seconds = costs.encoding + steps * costs.step + costs.decoding + costs.storing
    return [str(Shape.of(job.input)), *astuple(costs), outcome.usage.gpu_seconds, run_seconds]
