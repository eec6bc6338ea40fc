"""Liveness, readiness and metrics: what probes, load balancers and Prometheus ask."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from jobs.errors import StoreUnavailable
from jobs.worker_registry import list_workers
from server.metrics import exposition, queue_gauges
from server.readiness import readiness
from server.schemas import Health, Readiness
from server.services import ServicesDep

router = APIRouter(tags=["operation"])


@router.get("/healthz", summary="Liveness", response_model=Health)
async def healthz() -> Health:
    """200 as long as the process answers. Says nothing about Redis or workers: see `/readyz`."""
    return Health()


@router.get(
    "/readyz",
    summary="Readiness",
    response_model=Readiness,
    responses={503: {"model": Readiness, "description": "Jobs would wait; `reasons` says why."}},
)
async def readyz(services: ServicesDep, response: Response) -> Readiness:
    """200 only when Redis answers and a live worker that holds a model makes progress."""
    state = await readiness(services)
    if state.reasons:
        response.status_code = 503
    return state


@router.get(
    "/metrics",
    summary="Prometheus metrics",
    response_class=Response,
    responses={
        200: {
            "description": "Text exposition format, or OpenMetrics if asked for.",
            "content": {"text/plain": {"schema": {"type": "string"}}},
        }
    },
)
async def metrics(request: Request, services: ServicesDep) -> Response:
    """Queue gauges are read from Redis at each scrape and absent while Redis does not answer."""
    try:
        stats = await services.store.stats()
        gauges = queue_gauges(stats, list(services.specs), await list_workers(services.redis))
    except StoreUnavailable:
        gauges = []
    body, content_type = exposition(gauges, request.headers.get("accept", ""))
    return Response(body, headers={"Content-Type": content_type})
