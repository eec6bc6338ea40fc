"""What this server can generate: the models with limits, defaults, schema and residency."""

from __future__ import annotations

from fastapi import APIRouter

from jobs.worker_registry import list_workers
from server.auth import NEEDS_KEY
from server.documentation import problems
from server.model_views import model_view
from server.problems import Problem, ProblemCode
from server.schemas import Model, ModelList
from server.services import ServicesDep

router = APIRouter(prefix="/v1/models", tags=["models"], dependencies=[NEEDS_KEY])


@router.get("", summary="List models", response_model=ModelList, responses=problems(503))
async def list_models(services: ServicesDep) -> ModelList:
    """All models, with whether a worker holds them now."""
    workers = await list_workers(services.redis)
    return ModelList(data=[model_view(spec, workers) for spec in services.specs.values()])


@router.get(
    "/{model_id}", summary="Show a model", response_model=Model, responses=problems(404, 503)
)
async def get_model(model_id: str, services: ServicesDep) -> Model:
    """One model: limits, defaults and the JSON Schema of a request's `input`."""
    spec = services.specs.get(model_id)
    if spec is None:
        raise Problem(404, ProblemCode.NOT_FOUND, "This server has no model with this id.")
    return model_view(spec, await list_workers(services.redis))
