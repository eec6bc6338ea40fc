"""From a request body to a `NewJob`: every check that needs no Redis.

The body's shape is checked by `JobRequest`, its `input` by the model's own schema; then the job
gets its id and the fingerprint that tells a repeated submission from a different one.
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
from jobs.schema import resolve_input, total_steps
from jobs.types import NewJob
from server.error_handlers import field_errors
from server.problems import FieldError, Problem, ProblemCode, invalid_fields
from server.schemas import JobRequest

_IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,255}")


def new_job_id() -> str:
    """A fresh, unguessable id."""
    return f"job_{uuid.uuid4().hex}"


def new_job(
    body: dict[str, Any], specs: Mapping[str, ModelSpec], *, idempotency_key: str | None
) -> NewJob:
    """The validated submission.

    Raises `Problem` (422) or `jobs.errors.InvalidInput`, naming the field and what is allowed.
    """
    if idempotency_key is not None and not _IDEMPOTENCY_KEY.fullmatch(idempotency_key):
        raise invalid_fields(
            [
                FieldError(
                    param="Idempotency-Key",
                    message="Idempotency-Key must be 1 to 255 printable ASCII characters "
                    "without spaces",
                )
            ]
        )
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
    resolved = resolve_input(spec, request.input)
    return NewJob(
        id=new_job_id(),
        model=spec.id,
        input=resolved,
        total_steps=total_steps(resolved),
        priority=request.priority,
        deterministic=request.deterministic,
        metadata=dict(request.metadata),
        idempotency_key=idempotency_key,
        fingerprint=fingerprint(body),
    )


def fingerprint(body: Mapping[str, Any]) -> str:
    """SHA-256 over the body as sent, whatever the order of its fields."""
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
