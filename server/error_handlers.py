"""Translating errors of the job layer and of the framework into problems.

The routes raise what the job layer raises; the application's exception handlers, installed here,
give each its status, its code and, where waiting helps, a `Retry-After`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ExceptionHandler

from jobs.errors import (
    DeadlineTooSoon,
    DiskFull,
    IdempotencyConflict,
    InvalidInput,
    JobActive,
    JobNotFound,
    QueueFull,
    QuotaExceeded,
    StoredFileNotFound,
    StoreUnavailable,
)
from jobs.media.info import ChecksBusy
from server.problems import (
    FieldError,
    Problem,
    ProblemCode,
    invalid_fields,
    render,
    store_unavailable,
)

DISK_FULL_RETRY_SECONDS = 60
"""Room comes by itself when files and results expire, which the keeper looks after all the time."""

MAX_SHOWN_CHARS = 100
MAX_SHOWN_ERRORS = 32
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def install(app: FastAPI) -> None:
    """Registers every translation on the application."""
    app.add_exception_handler(Problem, _on_problem)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_request_validation)
    for kind, translate in _TRANSLATIONS.items():
        app.add_exception_handler(kind, _translating(translate))


def field_errors(errors: Sequence[Any], *, skip: int = 0) -> list[FieldError]:
    """pydantic's error list as ours: dotted field names, no echo of the value.

    `skip` leaves out that many leading parts of each location, such as "query".
    """
    found = []
    for error in errors[:MAX_SHOWN_ERRORS]:
        location = [part for part in error["loc"] if part != "[key]"][skip:]
        param = ".".join(str(part)[:MAX_SHOWN_CHARS] for part in location) or None
        name = param or "the value"
        if error["type"] == "extra_forbidden":
            message = f"{name} is not a known field"
        elif error["type"] == "missing":
            message = f"{name} is required"
        elif error["msg"].startswith("Input should"):
            message = f"{name} must{error['msg'].removeprefix('Input should')}"
        else:
            message = f"{name}: {error['msg']}"
        found.append(FieldError(param=param, message=message))
    return found


def _respond(request: Request, problem: Problem) -> Response:
    return render(problem, path=request.scope["path"], request_id=request.state.request_id)


async def _on_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return _respond(request, error)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = ", ".join(_methods_at(request))
        detail = f"This path knows {headers['Allow']}."
        problem = Problem(405, ProblemCode.METHOD_NOT_ALLOWED, detail, headers=headers)
    elif error.status_code == 404:
        problem = Problem(404, ProblemCode.NOT_FOUND, "There is nothing at this path; see /docs.")
    else:
        code = ProblemCode.INVALID_INPUT if error.status_code < 500 else ProblemCode.INTERNAL
        problem = Problem(error.status_code, code, str(error.detail), headers=headers)
    return _respond(request, problem)


def _methods_at(request: Request) -> list[str]:
    """Methods of all routes at the request's path; the framework names those of the first only."""

    def answers(method: str) -> bool:
        scope = {**request.scope, "method": method}
        return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)

    return [method for method in sorted(METHODS) if answers(method)]


async def _on_request_validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return _respond(request, invalid_fields(field_errors(error.errors(), skip=1)))


def _not_found(_: JobNotFound) -> Problem:
    return Problem(
        404, ProblemCode.NOT_FOUND, "There is no job with this id, or its record has expired."
    )


def _file_not_found(_: StoredFileNotFound) -> Problem:
    return Problem(404, ProblemCode.NOT_FOUND, "There is no file with this id, or it has expired.")


def _active(_: JobActive) -> Problem:
    return Problem(
        409,
        ProblemCode.JOB_ACTIVE,
        "The job has not ended: cancel it first (POST …/cancel), then delete it.",
    )


def _queue_full(error: QueueFull) -> Problem:
    return Problem(
        503,
        ProblemCode.OVERLOADED,
        "The queue is full; nothing was queued.",
        headers={"Retry-After": str(error.retry_after)},
    )


def _quota_exceeded(error: QuotaExceeded) -> Problem:
    return Problem(
        429,
        ProblemCode.QUOTA_EXCEEDED,
        f"This API key's quota {error.quota} ({error.limit:g}) is used up; nothing was queued.",
        headers={"Retry-After": str(error.retry_after)},
    )


def _disk_full(_: DiskFull) -> Problem:
    return Problem(
        503,
        ProblemCode.OVERLOADED,
        "The server's disk has no room for files; nothing was kept.",
        headers={"Retry-After": str(DISK_FULL_RETRY_SECONDS)},
    )


def _checks_busy(error: ChecksBusy) -> Problem:
    return Problem(
        503,
        ProblemCode.OVERLOADED,
        "Too many files are being checked; this one was not kept.",
        headers={"Retry-After": str(error.retry_after)},
    )


def _deadline_too_soon(error: DeadlineTooSoon) -> Problem:
    """One that no wait would help is the request's own fault."""
    asked = f"deadline_seconds is {error.deadline:g}"
    if error.run > error.deadline:
        detail = f"{asked}, but the job alone takes about {error.run:.3g} s; nothing was queued."
        return Problem(422, ProblemCode.DEADLINE_EXCEEDED, detail, param="deadline_seconds")
    wait = max(math.ceil(error.needed - error.deadline), 1)
    return Problem(
        503,
        ProblemCode.DEADLINE_EXCEEDED,
        f"{asked}, but with what waits before it the job would end in about {error.needed:.3g} s; "
        "nothing was queued.",
        param="deadline_seconds",
        headers={"Retry-After": str(wait)},
    )


def _idempotency_conflict(_: IdempotencyConflict) -> Problem:
    return Problem(
        422,
        ProblemCode.IDEMPOTENCY_CONFLICT,
        "This Idempotency-Key came earlier with another body; use a new key.",
        param="Idempotency-Key",
    )


def _invalid_input(error: InvalidInput) -> Problem:
    return invalid_fields([FieldError(param=e.param, message=e.message) for e in error.errors])


def _unavailable(_: StoreUnavailable) -> Problem:
    return store_unavailable()


_TRANSLATIONS: dict[type[Exception], Callable[[Any], Problem]] = {
    JobNotFound: _not_found,
    StoredFileNotFound: _file_not_found,
    JobActive: _active,
    QueueFull: _queue_full,
    QuotaExceeded: _quota_exceeded,
    DeadlineTooSoon: _deadline_too_soon,
    ChecksBusy: _checks_busy,
    DiskFull: _disk_full,
    IdempotencyConflict: _idempotency_conflict,
    InvalidInput: _invalid_input,
    StoreUnavailable: _unavailable,
}


def _translating(translate: Callable[[Any], Problem]) -> ExceptionHandler:
    async def handle(request: Request, error: Exception) -> Response:
        return _respond(request, translate(error))

    return handle
