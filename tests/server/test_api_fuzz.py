"""Requests made up from the API's own description: none may break the server or the promises."""

from __future__ import annotations

from typing import Any

import schemathesis
from http_harness import Api, FakeWorker, worker_info
from hypothesis import HealthCheck, Phase, settings
from redis import Redis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from jobs.worker_registry import announce
from server import openapi

CHECKS = [
    not_a_server_error,
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
]


schema = schemathesis.openapi.from_path(openapi.PATH)


FUZZ = settings(
    max_examples=10,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@schema.parametrize()
@FUZZ
def test_no_request_breaks_what_the_description_promises(
    case: Any, api: Api, redis_client: Redis
) -> None:
    announce(redis_client, worker_info())
    case.call_and_validate(base_url=api.url, checks=CHECKS, timeout=60)


@schema.include(path_regex="job_id").parametrize()
@FUZZ
def test_no_request_about_a_real_job_breaks_what_the_description_promises(
    case: Any, api: Api, worker: FakeWorker
) -> None:
    job_id = api.submit(input={"prompt": "x", "num_inference_steps": 1})["id"]
    worker.run_one()
    case.path_parameters["job_id"] = job_id
    case.call_and_validate(base_url=api.url, checks=CHECKS, timeout=60)
