"""From a request body to a queued job.

The body's shape is checked by `JobRequest`, its `input` by the model's own schema, with the files
that it names; then the job gets its id and the fingerprint that tells a repeated submission from a
different one, and is handed to the job store.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from config.model_spec import ModelSpec
from config.settings import Settings
from jobs.errors import DeadlineTooSoon, IdempotencyConflict, QueueFull, QuotaExceeded
from jobs.schema import file_references, total_steps
from jobs.types import JobRecord, NewJob
from jobs.worker_registry import list_workers
from server.error_handlers import field_errors
from server.model_views import memory_bytes
from server.problems import FieldError, Problem, ProblemCode, invalid_fields
from server.schemas import Estimate, JobRequest
from server.services import Services

_IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,255}")


def new_job_id() -> str:
    """A fresh, unguessable id."""
    return f"job_{uuid.uuid4().hex}"


def max_body_bytes(settings: Settings, specs: Mapping[str, ModelSpec]) -> int:
    """How large a submission may be: more where some model takes files, which may be inside."""
    if all(spec.task != "video" for spec in specs.values()):
        return settings.max_body_bytes
    # Base64 makes four characters of three bytes.
    return settings.max_body_bytes + -(-settings.max_data_url_bytes // 3) * 4


async def submit(
    services: Services, body: dict[str, Any], *, owner: str, idempotency_key: str | None
) -> tuple[JobRecord, bool]:
    """Queues the job that `body` asks for; returns its record and whether this call made it.

    `owner` is the id of the API key it came with, or empty.

    Raises `Problem` (422) or `jobs.errors.InvalidInput`, naming the field and what is allowed, and
    what `JobStore.submit` raises. Files that came with a refused job are not kept.
    """
    _check_idempotency_key(idempotency_key)
    request, spec = _checked(body, services.specs)
    digest = fingerprint(body)
    # A repetition must find its job though the files have expired meanwhile.
    if idempotency_key is not None and file_references(spec, request.input):
        earlier = await services.store.earlier(idempotency_key, digest, owner)
        if earlier is not None:
            return earlier, False
    prepared = await services.inputs.prepare(new_job_id(), spec, request.input, owner)
    job = NewJob(
        id=prepared.job_id,
        model=spec.id,
        input=prepared.resolved,
        total_steps=total_steps(prepared.resolved),
        priority=request.priority,
        deterministic=request.deterministic,
        metadata=dict(request.metadata),
        owner=owner,
        deadline_seconds=request.deadline_seconds,
        idempotency_key=idempotency_key,
        fingerprint=digest,
    )
    # After any other error the job may be queued all the same, and needs its files; if it is not,
    # the keeper removes them.
    try:
        record, created = await services.store.submit(job)
    except (QueueFull, QuotaExceeded, DeadlineTooSoon, IdempotencyConflict):
        await services.inputs.withdraw(prepared)
        raise
    if not created:
        await services.inputs.release(prepared)
    return record, created


async def estimate(services: Services, body: dict[str, Any], *, owner: str) -> Estimate:
    """What the job that `body` asks for would take; nothing is queued and no file kept.

    Raises what `submit` does about the body.
    """
    request, spec = _checked(body, services.specs)
    prepared = await services.inputs.prepare(new_job_id(), spec, request.input, owner)
    await services.inputs.withdraw(prepared)
    steps = total_steps(prepared.resolved)
    found = await services.store.costs.estimate(spec.id, prepared.resolved, steps)
    workers = await list_workers(services.redis)
    return Estimate(
        model=spec.id,
        seconds=None if found is None else round(found.run_seconds, 3),
        gpu_seconds=None if found is None else round(found.gpu_seconds, 3),
        memory_bytes=memory_bytes(spec.id, workers),
        input=prepared.resolved,
    )


def _check_idempotency_key(key: str | None) -> None:
    if key is not None and not _IDEMPOTENCY_KEY.fullmatch(key):
        raise invalid_fields(
            [
                FieldError(
                    param="Idempotency-Key",
                    message="Idempotency-Key must be 1 to 255 printable ASCII characters "
                    "without spaces",
                )
            ]
        )


def _checked(body: dict[str, Any], specs: Mapping[str, ModelSpec]) -> tuple[JobRequest, ModelSpec]:
    try:
        request = JobRequest.model_validate(body)
    except ValidationError as error:
        raise invalid_fields(field_errors(error.errors(include_input=False))) from None
    spec = specs.get(request.model)
    if spec is None:
        raise Problem(
            422,
            ProblemCode.UNSUPPORTED_MODEL,
            f"model is not served here; models: {', '.join(specs) or 'none'}.",
            param="model",
        )
    return request, spec


def fingerprint(body: Mapping[str, Any]) -> str:
    """SHA-256 over the body as sent, whatever the order of its fields."""
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
