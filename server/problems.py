"""Errors as RFC 9457 problem documents.

Every refusal a client can meet is a `Problem`, raised anywhere below a route and rendered here in
one shape: a stable `code` for programs, a `detail` for people, `param` for the field at fault.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

STORE_RETRY_SECONDS = 2


MAX_PATH_CHARS = 256


class ProblemCode(StrEnum):
    """Why a request was refused. Jobs that fail later use `jobs.types.ErrorCode`."""

    INVALID_INPUT = "invalid_input"
    UNSUPPORTED_MODEL = "unsupported_model"
    UNAUTHORIZED = "unauthorized"
    QUOTA_EXCEEDED = "quota_exceeded"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    OVERLOADED = "overloaded"
    INTERNAL = "internal"
    MALFORMED_BODY = "malformed_body"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    BODY_TOO_LARGE = "body_too_large"
    IDEMPOTENCY_CONFLICT = "idempotency_conflict"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    JOB_ACTIVE = "job_active"
    JOB_NOT_FINISHED = "job_not_finished"
    RESULT_EXPIRED = "result_expired"
    RANGE_NOT_SATISFIABLE = "range_not_satisfiable"
    STORE_UNAVAILABLE = "store_unavailable"


TITLES = {
    ProblemCode.INVALID_INPUT: "Invalid input",
    ProblemCode.UNSUPPORTED_MODEL: "Unsupported model",
    ProblemCode.UNAUTHORIZED: "API key needed",
    ProblemCode.QUOTA_EXCEEDED: "Quota exceeded",
    ProblemCode.DEADLINE_EXCEEDED: "The deadline cannot be met",
    ProblemCode.OVERLOADED: "Too much waits",
    ProblemCode.INTERNAL: "Internal error",
    ProblemCode.MALFORMED_BODY: "Malformed body",
    ProblemCode.UNSUPPORTED_MEDIA_TYPE: "Unsupported media type",
    ProblemCode.BODY_TOO_LARGE: "Body too large",
    ProblemCode.IDEMPOTENCY_CONFLICT: "Idempotency key used for another request",
    ProblemCode.NOT_FOUND: "Not found",
    ProblemCode.METHOD_NOT_ALLOWED: "Method not allowed",
    ProblemCode.JOB_ACTIVE: "The job is active",
    ProblemCode.JOB_NOT_FINISHED: "The job has not finished",
    ProblemCode.RESULT_EXPIRED: "The result has expired",
    ProblemCode.RANGE_NOT_SATISFIABLE: "Range not satisfiable",
    ProblemCode.STORE_UNAVAILABLE: "The job store does not answer",
}


class FieldError(BaseModel):
    """One field at fault, and a sentence that names it and what it may hold."""

    model_config = ConfigDict(frozen=True)

    param: str | None = Field(examples=["input.width"])
    message: str = Field(
        examples=["input.width must be a whole number from 64 to 512 in steps of 32; got 70"]
    )


class ProblemDocument(BaseModel):
    """An RFC 9457 problem. `type` and `code` are stable; `title` and `detail` are for people."""

    type: str = Field(examples=["urn:denoised:problem:invalid_input"])
    title: str = Field(examples=["Invalid input"])
    status: int = Field(examples=[422])
    detail: str
    instance: str = Field(description="Path of the request.", examples=["/v1/jobs"])
    code: ProblemCode
    param: str | None = Field(default=None, description="The field at fault, e.g. `input.width`.")
    errors: list[FieldError] | None = Field(
        default=None, description="All fields at fault, when there is more than one."
    )
    request_id: str = Field(description="Same as the `X-Request-Id` header.")


class Problem(Exception):
    """A refusal: HTTP status, code, sentence for people and, for bad fields, which ones."""

    def __init__(
        self,
        status: int,
        code: ProblemCode,
        detail: str,
        *,
        param: str | None = None,
        errors: Sequence[FieldError] = (),
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.param = param
        self.errors = tuple(errors)
        self.headers = headers or {}


class ProblemResponse(JSONResponse):
    """A rendered problem document."""

    media_type = "application/problem+json"


def render(problem: Problem, *, path: str, request_id: str) -> ProblemResponse:
    """The response for a problem met at `path`."""
    document = ProblemDocument(
        type=f"urn:denoised:problem:{problem.code}",
        title=TITLES[problem.code],
        status=problem.status,
        detail=problem.detail,
        # A path may hold whatever a client percent-encoded, lone surrogates included.
        instance=path[:MAX_PATH_CHARS].encode("utf-8", "replace").decode(),
        code=problem.code,
        param=problem.param,
        errors=list(problem.errors) if len(problem.errors) > 1 else None,
        request_id=request_id,
    )
    return ProblemResponse(
        document.model_dump(exclude_none=True), status_code=problem.status, headers=problem.headers
    )


def invalid_fields(errors: Sequence[FieldError], *, status: int = 422) -> Problem:
    """One problem for one or more bad fields; the first leads."""
    first = errors[0]
    detail = first.message
    if len(errors) > 1:
        detail += f" (and {len(errors) - 1} more, see errors)"
    return Problem(status, ProblemCode.INVALID_INPUT, detail, param=first.param, errors=errors)


def store_unavailable() -> Problem:
    """Redis does not answer. Whether it still did what was asked cannot be known."""
    return Problem(
        503,
        ProblemCode.STORE_UNAVAILABLE,
        "The job store (Redis) does not answer. Try again shortly; with an Idempotency-Key a "
        "repeated submission is safe.",
        headers={"Retry-After": str(STORE_RETRY_SECONDS)},
    )
