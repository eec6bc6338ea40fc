"""The OpenAPI document: in step with the routes, complete about refusals, valid by itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from http_harness import Api

from config.settings import Settings
from server import examples, openapi
from server.app import create_app
from server.schemas import Job, JobRequest, StoredFile

ROUTES = {
    ("POST", "/v1/jobs"),
    ("POST", "/v1/estimate"),
    ("GET", "/v1/jobs"),
    ("GET", "/v1/jobs/{job_id}"),
    ("DELETE", "/v1/jobs/{job_id}"),
    ("POST", "/v1/jobs/{job_id}/cancel"),
    ("GET", "/v1/jobs/{job_id}/events"),
    ("GET", "/v1/jobs/{job_id}/outputs/{index}"),
    ("POST", "/v1/files"),
    ("GET", "/v1/files"),
    ("GET", "/v1/files/{file_id}"),
    ("DELETE", "/v1/files/{file_id}"),
    ("GET", "/v1/files/{file_id}/content"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{model_id}"),
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/metrics"),
}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """The document as it is checked in."""
    loaded: dict[str, Any] = yaml.safe_load(openapi.PATH.read_text())
    return loaded


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def test_the_checked_in_document_matches_the_routes() -> None:
    assert openapi.main(["--check"]) == 0


def test_a_document_that_lags_behind_is_noticed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(openapi, "PATH", tmp_path / "openapi.yaml")
    assert openapi.main(["--check"]) == 1
    assert openapi.main([]) == 0
    assert openapi.main(["--check"]) == 0
    openapi.PATH.write_text(openapi.PATH.read_text().replace("/readyz", "/ready"))
    assert openapi.main(["--check"]) == 1
    assert "python -m server.openapi" in capsys.readouterr().err


def test_the_server_serves_the_same_document(api: Api, document: dict[str, Any]) -> None:
    assert api.client.get("/openapi.json").json() == document
    assert "swagger" in api.client.get("/docs").text


def test_every_route_is_described_and_nothing_else(document: dict[str, Any]) -> None:
    described = {(method, path) for method, path, _ in operations(document)}
    assert described == ROUTES
    for _, _, operation in operations(document):
        assert operation["summary"]
        assert operation["description"]
        assert operation["tags"]


def test_every_refusal_is_a_problem_document(document: dict[str, Any]) -> None:
    for method, path, operation in operations(document):
        for status, response in operation["responses"].items():
            if int(status) >= 400 and path != "/readyz":
                assert list(response["content"]) == ["application/problem+json"], (method, path)


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    def references(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            if isinstance(node.get("$ref"), str):
                yield node["$ref"]
            for member in node.values():
                yield from references(member)
        elif isinstance(node, list):
            for member in node:
                yield from references(member)

    for reference in references(document):
        node: Any = document
        for part in reference.removeprefix("#/").split("/"):
            node = node[part]


def test_the_examples_are_valid() -> None:
    assert Job.model_validate(examples.JOB).model_dump(mode="json") == examples.JOB
    assert JobRequest.model_validate(examples.JOB_REQUEST)
    assert StoredFile.model_validate(examples.FILE).model_dump(mode="json") == examples.FILE


def test_the_document_does_not_depend_on_the_settings() -> None:
    settings = Settings(redis_url="redis://elsewhere", max_body_bytes=4096)
    assert openapi.as_yaml(create_app(settings, ())) == openapi.PATH.read_text()
