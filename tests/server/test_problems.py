"""Problems, request ids and the log: one shape for every refusal."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from http_harness import BODY, Api, serving, until

from config.settings import Settings
from server.observing import request_id_from
from server.problems import TITLES, ProblemCode


def test_a_problem_document_has_the_members_of_rfc_9457_and_ours(api: Api) -> None:
    response = api.client.get("/v1/jobs/job_none")
    problem = response.json()
    assert problem == {
        "type": "urn:denoised:problem:not_found",
        "title": "Not found",
        "status": 404,
        "detail": problem["detail"],
        "instance": "/v1/jobs/job_none",
        "code": "not_found",
        "request_id": response.headers["X-Request-Id"],
    }


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/job", "/v1/jobs/", "/v1/jobs//", "/%00%ff"])
def test_an_unknown_path_is_a_problem(api: Api, path: str) -> None:
    response = api.client.get(path)
    assert response.status_code == 404
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.json()["code"] == "not_found"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/v1/jobs", "GET"),
        ("PATCH", "/v1/jobs/job_x", "DELETE"),
        ("POST", "/healthz", "GET"),
    ],
)
def test_a_method_that_a_path_lacks_is_a_problem_naming_those_it_has(
    api: Api, method: str, path: str, allowed: str
) -> None:
    response = api.client.request(method, path)
    assert response.status_code == 405
    assert response.json()["code"] == "method_not_allowed"
    assert allowed in response.headers["Allow"]


def test_every_code_has_a_title() -> None:
    assert set(TITLES) == set(ProblemCode)


def test_without_redis_every_route_that_needs_it_says_when_to_try_again(
    settings: Settings,
) -> None:
    nowhere = settings.model_copy(update={"redis_url": "redis://127.0.0.1:1/0"})
    with serving(nowhere) as api:
        for method, path in [
            ("POST", "/v1/jobs"),
            ("GET", "/v1/jobs"),
            ("GET", "/v1/jobs/job_x"),
            ("DELETE", "/v1/jobs/job_x"),
            ("POST", "/v1/jobs/job_x/cancel"),
            ("GET", "/v1/jobs/job_x/events"),
            ("GET", "/v1/jobs/job_x/outputs/0"),
            ("GET", "/v1/models"),
        ]:
            body = BODY if (method, path) == ("POST", "/v1/jobs") else None
            response = api.client.request(method, path, json=body)
            assert response.status_code == 503, path
            assert response.json()["code"] == "store_unavailable"
            assert int(response.headers["Retry-After"]) >= 1


def test_a_bad_request_is_refused_even_without_redis(settings: Settings) -> None:
    # Whether a key is needed is asked of Redis before all else, unless it is settled.
    nowhere = settings.model_copy(
        update={"redis_url": "redis://127.0.0.1:1/0", "require_keys": "never"}
    )
    with serving(nowhere) as api:
        response = api.client.post("/v1/jobs", json=BODY | {"input": {"prompt": ""}})
        assert response.status_code == 422


def test_an_unforeseen_exception_is_a_problem_with_its_cause_in_the_log_only(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("the secret cause")

    monkeypatch.setattr(api.services.store, "get", broken)
    response = api.client.get("/v1/jobs/job_x", headers={"X-Request-Id": "abc"})
    assert response.status_code == 500
    assert response.json()["code"] == "internal"
    assert response.headers["X-Request-Id"] == "abc"
    assert "secret" not in response.text
    assert "the secret cause" in caplog.text
    assert "abc" in caplog.text


def test_the_callers_request_id_is_kept_if_it_is_plain(api: Api) -> None:
    response = api.client.get("/healthz", headers={"X-Request-Id": "trace-1/a"})
    assert response.headers["X-Request-Id"] == "trace-1/a"


@pytest.mark.parametrize("header", [None, "", "x" * 129, "a b", "a\nb", 'a"b', "ä", "\x1b[31m"])
def test_any_other_request_id_is_replaced(header: str | None) -> None:
    first, second = request_id_from(header), request_id_from(header)
    assert first != second
    assert first.startswith("req_")


def test_the_log_has_the_route_and_never_a_prompt_or_a_query(
    api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    job = api.submit(input={"prompt": "a very private prompt"})
    api.client.get(f"/v1/jobs/{job['id']}?secret=1")
    api.client.post("/v1/jobs", json=BODY | {"input": {"prompt": "private", "width": 1}})

    def log() -> str:
        ours = (r for r in caplog.records if r.name.startswith("denoised"))
        return "\n".join(record.getMessage() for record in ours)

    until(lambda: log().count("route=") == 3, "three lines in the log")
    assert "method=GET route=/v1/jobs/{job_id} status=200" in log()
    assert "private" not in log()
    assert "secret" not in log()
    assert job["id"] not in log()
