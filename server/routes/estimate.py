"""What a job would take, without one."""

from __future__ import annotations

from fastapi import APIRouter, Request

from server.auth import NEEDS_KEY, OwnerDep
from server.body import read_json_object
from server.documentation import JOB_REQUEST_BODY, problems
from server.schemas import Estimate
from server.services import ServicesDep
from server.submission import estimate, max_body_bytes

router = APIRouter(prefix="/v1/estimate", tags=["jobs"], dependencies=[NEEDS_KEY])


@router.post(
    "",
    summary="Estimate a job",
    response_model=Estimate,
    responses=problems(400, 413, 415, 422, 503),
    openapi_extra=JOB_REQUEST_BODY,
)
async def estimate_job(request: Request, services: ServicesDep, owner: OwnerDep) -> Estimate:
    """Checks a submission as `POST /v1/jobs` does and tells what it would take; queues nothing.

    The figures come from jobs of the model that have finished: of the same size if there were any,
    else scaled from the nearest.
    """
    limit = max_body_bytes(services.settings, services.specs)
    body = await read_json_object(request, max_bytes=limit)
    return await estimate(services, body, owner=owner)
