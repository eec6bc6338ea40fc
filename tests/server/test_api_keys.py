"""Requests with, without and with another's API key, over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from itertools import islice
from typing import Any

import httpx2
import pytest
from http_harness import BODY, Api, FakeWorker, serving
from redis import Redis

from config.settings import Settings
from jobs.api_keys import KeyStore
from jobs.events import Event
from jobs.types import EventType
from server import sse
from tests.media_files import picture
from tests.video_spec import VIDEO_SPEC

MakeSettings = Callable[..., Settings]


@pytest.fixture
def key_store(redis_client: Redis) -> KeyStore:
    return KeyStore(redis_client)


@pytest.fixture
def login(key_store: KeyStore) -> Iterator[Callable[[Api], httpx2.Client]]:
    """Clients of a server, each with a key of its own."""
    made: list[httpx2.Client] = []

    def login(api: Api) -> httpx2.Client:
        _, token = key_store.create(f"client {len(made)}")
        headers = {"Authorization": f"Bearer {token}"}
        made.append(httpx2.Client(base_url=api.url, headers=headers, trust_env=False))
        return made[-1]

    yield login
    for client in made:
        client.close()


def refused(response: Any) -> bool:
    if response.status_code != 401:
        return False
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.headers["WWW-Authenticate"].startswith("Bearer")
    assert response.json()["code"] == "unauthorized"
    return True


def test_a_local_server_is_open_until_the_first_key_is_made(api: Api, key_store: KeyStore) -> None:
    stray = {"Authorization": "Bearer sk-whatever"}
    assert api.client.get("/v1/jobs", headers=stray).status_code == 200
    key, token = key_store.create("first")
    good = {"Authorization": f"Bearer {token}"}
    assert refused(api.client.get("/v1/jobs"))
    assert refused(api.client.get("/v1/jobs", headers=stray))
    assert refused(api.client.get("/v1/jobs", headers={"Authorization": f"Basic {token}"}))
    assert api.client.get("/v1/jobs", headers=good).status_code == 200
    key_store.revoke(key.id)
    assert refused(api.client.get("/v1/jobs", headers=good)), "at once"
    assert refused(api.client.get("/v1/jobs")), "and the server stays closed"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/jobs"),
        ("POST", "/v1/estimate"),
        ("GET", "/v1/jobs"),
        ("GET", "/v1/jobs/job_x"),
        ("DELETE", "/v1/jobs/job_x"),
        ("POST", "/v1/jobs/job_x/cancel"),
        ("GET", "/v1/jobs/job_x/events"),
        ("GET", "/v1/jobs/job_x/outputs/0"),
        ("POST", "/v1/files"),
        ("GET", "/v1/files"),
        ("GET", "/v1/files/file_x"),
        ("DELETE", "/v1/files/file_x"),
        ("GET", "/v1/files/file_x/content"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/test-model"),
    ],
)
def test_every_route_of_the_api_needs_a_key(
    api: Api, key_store: KeyStore, method: str, path: str
) -> None:
    key_store.create("first")
    assert refused(api.client.request(method, path))


def test_no_route_is_left_out(api: Api, key_store: KeyStore) -> None:
    key_store.create("first")
    document = api.client.get("/openapi.json").json()
    free = {
        path
        for path, operations in document["paths"].items()
        for operation in operations.values()
        if "401" not in operation["responses"] or not operation.get("security")
    }
    assert free == {"/healthz", "/readyz", "/metrics"}
    assert api.client.get("/healthz").status_code == 200
    assert api.client.get("/readyz").status_code == 503, "no worker, but no key needed either"
    assert api.client.get("/metrics").status_code == 200


def test_a_key_sees_only_its_own_jobs(
    api: Api, worker: FakeWorker, login: Callable[[Api], httpx2.Client]
) -> None:
    mine, other = login(api), login(api)
    job = mine.post("/v1/jobs", json=BODY).json()
    worker.run_one()
    for path in ("", "/events", "/outputs/0"):
        assert mine.get(f"/v1/jobs/{job['id']}{path}").status_code == 200
        assert other.get(f"/v1/jobs/{job['id']}{path}").status_code == 404
    assert other.post(f"/v1/jobs/{job['id']}/cancel").status_code == 404
    assert other.delete(f"/v1/jobs/{job['id']}").status_code == 404
    assert [entry["id"] for entry in mine.get("/v1/jobs").json()["data"]] == [job["id"]]
    assert other.get("/v1/jobs").json()["data"] == []
    assert mine.delete(f"/v1/jobs/{job['id']}").status_code == 204


def test_an_open_stream_ends_when_its_key_is_revoked(
    api: Api, key_store: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "HEARTBEAT_SECONDS", 0.05)
    key, token = key_store.create("first")
    headers = {"Authorization": f"Bearer {token}"}
    job = api.client.post("/v1/jobs", json=BODY, headers=headers).json()
    with api.client.stream("GET", job["links"]["events"], headers=headers) as response:
        lines = response.iter_lines()
        assert [line for line in islice(lines, 20) if line == ": keepalive"], "a good key's goes on"
        key_store.revoke(key.id)
        assert ": the API key is no longer good" in [*lines]


async def test_a_busy_stream_is_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "HEARTBEAT_SECONDS", 0.05)
    answers = iter([True, False])

    async def busy() -> AsyncGenerator[Event, None]:
        while True:
            await asyncio.sleep(0.001)
            yield Event("1-1", EventType.PROGRESS, {})

    async def ask() -> bool:
        return next(answers)

    stream = sse.event_stream(busy(), stopping=asyncio.Event(), is_still_allowed=ask)
    assert [chunk async for chunk in stream][-1] == b": the API key is no longer good\n\n"


def test_a_key_sees_and_uses_only_its_own_files(
    video_api: Api, login: Callable[[Api], httpx2.Client]
) -> None:
    mine, other = login(video_api), login(video_api)
    file = mine.post("/v1/files", files={"file": ("a.png", picture())}).json()
    for path in ("", "/content"):
        assert mine.get(f"/v1/files/{file['id']}{path}").status_code == 200
        assert other.get(f"/v1/files/{file['id']}{path}").status_code == 404
    body = {"model": VIDEO_SPEC.id, "input": {"prompt": "x", "first_frame": file["id"]}}
    assert other.post("/v1/jobs", json=body).status_code == 422
    assert mine.post("/v1/jobs", json=body).status_code == 202
    assert other.delete(f"/v1/files/{file['id']}").status_code == 404
    assert other.get("/v1/files").json()["data"] == []
    assert [entry["id"] for entry in mine.get("/v1/files").json()["data"]] == [file["id"]]
    assert mine.delete(f"/v1/files/{file['id']}").status_code == 204
    assert mine.get("/v1/files").json()["data"] == []


@pytest.mark.parametrize(("mode", "needs_key"), [("always", True), ("never", False)])
def test_the_setting_outweighs_where_the_server_listens(
    make_settings: MakeSettings, key_store: KeyStore, mode: str, needs_key: bool
) -> None:
    with serving(make_settings(require_keys=mode)) as api:
        for _ in range(2):
            assert refused(api.client.get("/v1/jobs")) is needs_key
            key_store.create("a key")
