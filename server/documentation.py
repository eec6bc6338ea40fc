"""How the application describes itself: the OpenAPI document and the pieces routes share for it."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from jobs.types import EventType
from server import examples
from server.problems import ProblemDocument
from server.schemas import JobEvent, JobRequest

_REFERENCE = "#/components/schemas/{model}"

_MEANINGS = {
    400: "The body is not a JSON object, or not a whole form.",
    401: "A good API key is needed: `Authorization: Bearer …`.",
    404: "No such resource, or it has expired.",
    409: "The job is not in a state for this.",
    410: "The result has expired and is gone.",
    413: "The body is too large.",
    415: "The body is not JSON in UTF-8, or not a form where one is needed.",
    416: "The range lies outside the file.",
    422: "A field is wrong: `param` names it, `detail` tells what is allowed.",
    429: "A quota of the API key is used up; `Retry-After` says when to try again.",
    503: "Too much waits, or Redis does not answer; `Retry-After` says when to try again.",
}


JOB_REQUEST_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/JobRequest"}}},
    }
}
"""The `openapi_extra` of a route that takes a submission, which it reads itself."""

EVENT_STREAM: dict[str, Any] = {
    "description": "Server-sent events. `data` is JSON; the last event is `job.succeeded`, "
    "`job.failed` or `job.cancelled`; `id` resumes the stream after it.",
    "content": {
        "text/event-stream": {
            "schema": {
                "type": "object",
                "required": ["event", "id", "data"],
                "properties": {
                    "event": {"enum": [kind.value for kind in EventType]},
                    "id": {"type": "string"},
                    "data": {
                        "type": "string",
                        "contentMediaType": "application/json",
                        "contentSchema": {"$ref": _REFERENCE.format(model="JobEvent")},
                    },
                },
            },
            "example": examples.EVENTS,
        }
    },
}
"""The `responses` entry of a route that streams events."""


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that needs a key and can refuse with these statuses."""
    return {
        status: {"model": ProblemDocument, "description": _MEANINGS[status]}
        for status in sorted({401, *statuses})
    }


def install_openapi(app: FastAPI) -> None:
    """Makes the application describe itself as `document` does."""
    app.openapi = lambda: document(app)  # type: ignore[method-assign]


def document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI 3.1 document of the application's routes."""
    if app.openapi_schema is None:
        generated = get_openapi(
            title=app.title,
            summary=app.summary,
            description=app.description,
            version=app.version,
            routes=app.routes,
        )
        for model in (JobRequest, JobEvent):
            _add_schema(generated, model)
        _mark_problems(generated)
        app.openapi_schema = generated
    return app.openapi_schema


def _add_schema(generated: dict[str, Any], model: type[BaseModel]) -> None:
    """Adds a model that the framework does not see: bodies and streams are handled by us."""
    schema = model.model_json_schema(ref_template=_REFERENCE)
    schemas = generated["components"]["schemas"]
    generated["components"]["schemas"] = (
        schema.pop("$defs", {}) | {model.__name__: schema} | schemas
    )


def _mark_problems(generated: dict[str, Any]) -> None:
    """Gives problem documents their media type, and removes the framework's own error format."""
    problem = {"$ref": _REFERENCE.format(model="ProblemDocument")}
    framework = {"$ref": _REFERENCE.format(model="HTTPValidationError")}
    for name in ("HTTPValidationError", "ValidationError"):
        generated["components"]["schemas"].pop(name, None)
    for path in generated["paths"].values():
        for operation in path.values():
            for status, response in list(operation["responses"].items()):
                content = response.get("content", {})
                schema = content.get("application/json", {}).get("schema")
                if schema == framework:
                    del operation["responses"][status]
                elif schema == problem:
                    content["application/problem+json"] = content.pop("application/json")
