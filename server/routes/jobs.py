"""The job resource: submit, list, show, cancel, delete.

Validation happens here and in the request schema, before Redis; every change of state is one call
of the job store.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from jobs.blobs import job_prefix
from jobs.errors import JobNotFound, StoreUnavailable
from jobs.types import JobRecord, Status
from server import examples
from server.auth import NEEDS_KEY, OwnerDep
from server.body import read_json_object
from server.documentation import JOB_REQUEST_BODY, problems
from server.problems import FieldError, invalid_fields
from server.schemas import Job, JobList
from server.services import ServicesDep
from server.submission import max_body_bytes, submit
from server.views import job_url, job_view
from server.waiting import preferred_wait, wait_for_end

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], dependencies=[NEEDS_KEY])

LONGEST_POLL_SECONDS = 60
_JOB_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


async def plausible_job_id(
    job_id: Annotated[str, Path(examples=[examples.JOB_ID])],
) -> str:
    """The id from the path; what cannot be an id is not looked up, it is not found."""
    if not _JOB_ID.fullmatch(job_id):
        raise JobNotFound(job_id)
    return job_id


JobId = Annotated[str, Depends(plausible_job_id)]


def _answer(
    request: Request,
    record: JobRecord,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
) -> Response:
    view = job_view(record, request.scope.get("root_path", ""))
    # Not left to the framework: the view is a validated model already.
    return Response(
        view.model_dump_json(),
        status_code=status,
        media_type="application/json",
        headers=headers,
    )


@router.post(
    "",
    summary="Submit a job",
    status_code=202,
    response_model=Job,
    responses={
        200: {"model": Job, "description": "The job has ended already."},
        202: {
            "description": "Queued, or still running at the end of the wait.",
            "headers": {
                "Location": {"schema": {"type": "string"}, "description": "The job's URL."},
                "Retry-After": {
                    "schema": {"type": "integer"},
                    "description": "Seconds to poll in.",
                },
            },
        },
        **problems(400, 413, 415, 422, 429, 503),
    },
    openapi_extra=JOB_REQUEST_BODY,
)
async def submit_job(
    request: Request,
    services: ServicesDep,
    owner: OwnerDep,
    idempotency_key: Annotated[
        str | None,
        Header(
            alias="Idempotency-Key",
            description="1 to 255 printable ASCII characters. The same key with the same body "
            "gives the first job again; with another body it is refused.",
        ),
    ] = None,
    prefer: Annotated[
        list[str] | None,
        Header(
            alias="Prefer",
            description="`wait=n` holds the answer for up to n seconds (60 at most) "
            "until the job has ended.",
        ),
    ] = None,
) -> Response:
    """Checks the request and queues it; nothing is queued when a field is wrong.

    `input` takes the fields of the model's schema (`GET /v1/models/{id}`). What is left out gets
    its default; a seed is drawn if none is given; the answer shows the input fully resolved.
    Fields that take a picture or a clip hold the id of a file (`POST /v1/files`) or a data URL.
    """
    limit = max_body_bytes(services.settings, services.specs)
    body = await read_json_object(request, max_bytes=limit)
    record, created = await submit(services, body, owner=owner, idempotency_key=idempotency_key)
    wait = preferred_wait(prefer or [])
    if wait and not record.status.is_terminal:
        await wait_for_end(request, services, record.id, wait)
        # The job is queued whatever happens now: an error would have the client submit it again.
        with suppress(StoreUnavailable):
            record = await services.store.get(record.id, owner)
    headers = {"Location": job_url(record.id, request.scope.get("root_path", ""))}
    if wait:
        headers["Preference-Applied"] = f"wait={wait}"
    if not created:
        headers["Idempotency-Replayed"] = "true"
    if record.status.is_terminal:
        return _answer(request, record, 200, headers)
    return _answer(request, record, 202, headers | {"Retry-After": str(_poll_seconds(record))})


def _poll_seconds(record: JobRecord) -> int:
    """When to look again: at the estimated end, within a minute; after a second if unmeasured."""
    if record.estimated_finish_at is None:
        return 1
    left = (record.estimated_finish_at - record.created_at).total_seconds()
    return min(max(math.ceil(left), 1), LONGEST_POLL_SECONDS)


class JobQuery(BaseModel):
    """Filters and paging of the list."""

    model_config = ConfigDict(extra="forbid")

    status: Status | None = None
    model: str | None = Field(default=None, max_length=64, description="Id of a model.")
    limit: int = Field(default=20, ge=1, le=100)
    cursor: str | None = Field(
        default=None, max_length=256, description="`next_cursor` of the page before."
    )


@router.get("", summary="List jobs", response_model=JobList, responses=problems(422, 503))
async def list_jobs(
    request: Request,
    services: ServicesDep,
    owner: OwnerDep,
    query: Annotated[JobQuery, Query()],
) -> JobList:
    """Newest first. Jobs that arrive while paging do not shift the pages that follow.

    With a filter a page may hold fewer jobs than `limit` although `has_more` is true.
    """
    try:
        records, cursor = await services.store.list(
            status=query.status,
            model=query.model,
            limit=query.limit,
            cursor=query.cursor,
            owner=owner,
        )
    except ValueError:
        if query.cursor is None:
            raise
        raise invalid_fields(
            [FieldError(param="cursor", message="cursor must be the next_cursor of a page")]
        ) from None
    root_path = request.scope.get("root_path", "")
    return JobList(
        data=[job_view(record, root_path) for record in records],
        has_more=cursor is not None,
        next_cursor=cursor,
    )


@router.get("/{job_id}", summary="Show a job", response_model=Job, responses=problems(404, 503))
async def get_job(
    job_id: JobId, request: Request, services: ServicesDep, owner: OwnerDep
) -> Response:
    """The job as it stands now. To follow it, read its events instead of polling."""
    return _answer(request, await services.store.get(job_id, owner))


@router.post(
    "/{job_id}/cancel",
    summary="Cancel a job",
    response_model=Job,
    responses={
        202: {"model": Job, "description": "Running: it ends at the next denoise step."},
        **problems(404, 503),
    },
)
async def cancel_job(
    job_id: JobId, request: Request, services: ServicesDep, owner: OwnerDep
) -> Response:
    """May be repeated. A queued job is cancelled at once, an ended job stays as it is."""
    record = await services.store.cancel(job_id, owner)
    return _answer(request, record, 202 if record.status is Status.RUNNING else 200)


@router.delete(
    "/{job_id}",
    summary="Delete a job",
    status_code=204,
    response_class=Response,
    responses=problems(404, 409, 503),
)
async def delete_job(job_id: JobId, services: ServicesDep, owner: OwnerDep) -> Response:
    """Removes the record and the outputs of a job that has ended."""
    await services.store.delete(job_id, owner)
    await asyncio.to_thread(services.blobs.delete_prefix, job_prefix(job_id))
    return Response(status_code=204)
