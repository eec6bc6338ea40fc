"""The event stream of a job: replay, then live, for any number of watchers."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response

from jobs.event_log import parse_stream_id
from server.auth import NEEDS_KEY, OwnerDep, RecheckDep
from server.documentation import EVENT_STREAM, problems
from server.problems import FieldError, invalid_fields
from server.routes.jobs import JobId
from server.services import ServicesDep
from server.sse import EventStreamResponse, event_stream

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], dependencies=[NEEDS_KEY])


@router.get(
    "/{job_id}/events",
    summary="Follow a job",
    response_class=Response,
    responses={
        200: EVENT_STREAM,
        **problems(404, 422, 503),
    },
)
async def watch_job(
    job_id: JobId,
    request: Request,
    services: ServicesDep,
    owner: OwnerDep,
    is_still_allowed: RecheckDep,
    last_event_id: Annotated[
        str | None,
        Header(
            alias="Last-Event-ID",
            description="`id` of the last event seen; browsers send it by themselves.",
        ),
    ] = None,
    after: Annotated[
        str | None, Query(description="The same for clients that cannot set headers.")
    ] = None,
) -> Response:
    """All events from the first, or after the one named, then live until the job has ended.

    A comment comes every 15 seconds without an event. When the server stops, the stream ends
    without a terminal event: reconnect and nothing is missed or repeated. It also ends, within half
    a minute, when the key it was opened with is revoked.
    """
    resume = last_event_id or after or None
    if resume is not None:
        try:
            parse_stream_id(resume)
        except ValueError:
            name = "Last-Event-ID" if last_event_id else "after"
            message = f"{name} must be the id of an event, such as 1700000000000-0"
            raise invalid_fields([FieldError(param=name, message=message)]) from None
    await services.store.get(job_id, owner)
    events = services.hub.watch(job_id, after=resume)
    return EventStreamResponse(
        event_stream(
            events,
            stopping=services.stopping,
            is_still_allowed=is_still_allowed,
            root_path=request.scope.get("root_path", ""),
        )
    )
