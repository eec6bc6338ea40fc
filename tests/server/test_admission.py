"""Quotas, deadlines and estimates as clients meet them."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest
from http_harness import BODY, SPEC, Api, FakeWorker, worker_info
from redis import Redis

from jobs import costs
from jobs.api_keys import KeyStore, Quotas
from jobs.types import Outcome, StageCosts, Status, Usage
from jobs.worker_registry import announce
from tests.media_files import picture
from tests.video_spec import VIDEO_SPEC

SAMPLE = StageCosts(encoding=1.0, step=10.0, device_step=8.0, decoding=2.0, storing=1.0)


@pytest.fixture
def measured(
    api: Api, worker: FakeWorker, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model whose default job takes 44 s, of which 35 on the device, and one worker for it."""
    monkeypatch.setattr(costs, "FRESH_SECONDS", -1.0)
    announce(redis_client, worker_info())
    api.submit()
    usage = Usage(gpu_seconds=35.0, steps=4)
    assert worker.leases.finish(
        worker.claim(), Outcome(Status.SUCCEEDED, usage=usage, costs=SAMPLE)
    )


def estimate(api: Api, **fields: Any) -> dict[str, Any]:
    body = {"model": SPEC.id, "input": {"prompt": "x", **fields}}
    response = api.client.post("/v1/estimate", json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_an_estimate_is_null_until_measured_and_resolves_the_input(api: Api) -> None:
    answer = estimate(api, seed=7)
    assert (answer["seconds"], answer["gpu_seconds"]) == (None, None)
    assert answer["memory_bytes"] is None
    assert answer["input"]["num_inference_steps"] == 4
    assert api.client.get("/v1/jobs").json()["data"] == []


@pytest.mark.usefixtures("measured")
def test_an_estimate_follows_steps_and_size(api: Api) -> None:
    assert (estimate(api)["seconds"], estimate(api)["gpu_seconds"]) == (44.0, 35.0)
    assert estimate(api, num_inference_steps=8)["seconds"] == 84.0
    assert estimate(api, width=128)["seconds"] == 1.0 + 2 * (40.0 + 2.0 + 1.0)


def test_an_estimate_tells_the_memory_that_a_worker_has_measured(
    api: Api, redis_client: Redis
) -> None:
    announce(redis_client, worker_info())
    assert estimate(api)["memory_bytes"] is None
    for name, size in (("a", 3_000), ("b", 5_000)):
        announce(redis_client, worker_info(name=name, model_bytes={SPEC.id: size}))
    assert estimate(api)["memory_bytes"] == 5_000
    assert api.client.get(f"/v1/models/{SPEC.id}").json()["residency"]["memory_bytes"] == 5_000


def test_an_estimate_refuses_what_a_submission_would(api: Api) -> None:
    body = {"model": SPEC.id, "input": {"prompt": "x", "width": 70}}
    refused = [api.client.post(path, json=body) for path in ("/v1/estimate", "/v1/jobs")]
    assert [response.status_code for response in refused] == [422, 422]
    assert refused[0].json()["detail"] == refused[1].json()["detail"]


def test_an_estimate_keeps_no_file(video_api: Api) -> None:
    import base64

    url = "data:image/png;base64," + base64.b64encode(picture()).decode()
    body = {"model": VIDEO_SPEC.id, "input": {"prompt": "x", "first_frame": url}}
    assert video_api.client.post("/v1/estimate", json=body).status_code == 200
    root = video_api.settings.blob_dir
    assert [path for path in root.rglob("*") if path.is_file()] == []
    assert video_api.client.get("/v1/files").json()["data"] == []


@pytest.mark.usefixtures("measured")
def test_a_queued_job_says_when_it_will_start_and_when_to_look_again(
    api: Api, worker: FakeWorker
) -> None:
    response = api.client.post("/v1/jobs", json=BODY)
    assert response.headers["Retry-After"] == "44"
    queue = response.json()["queue"]
    assert queue["estimated_start_at"] < queue["estimated_finish_at"]
    later = api.client.post("/v1/jobs", json=BODY)
    assert later.headers["Retry-After"] == "60", "no later than in a minute"
    metrics = api.client.get("/metrics").text
    assert f'denoised_queue_gpu_seconds{{model="{SPEC.id}"}} 70.0' in metrics


def test_before_anything_is_measured_there_is_no_forecast_to_scrape(api: Api) -> None:
    api.submit()
    assert "denoised_queue_gpu_seconds{" not in api.client.get("/metrics").text


@pytest.mark.usefixtures("measured")
def test_a_deadline_that_cannot_be_met_is_refused_with_what_would_help(api: Api) -> None:
    never = api.client.post("/v1/jobs", json=BODY | {"deadline_seconds": 43})
    assert never.status_code == 422
    problem = never.json()
    assert (problem["code"], problem["param"]) == ("deadline_exceeded", "deadline_seconds")
    job = api.client.post("/v1/jobs", json=BODY | {"deadline_seconds": 45}).json()
    assert job["deadline_at"] > job["created_at"]
    not_now = api.client.post("/v1/jobs", json=BODY | {"deadline_seconds": 45})
    assert not_now.status_code == 503
    assert not_now.json()["code"] == "deadline_exceeded"
    assert not_now.headers["Retry-After"] == "34"


@pytest.mark.parametrize("wrong", [0, -1, 1e9, "60", True, [60]])
def test_a_deadline_is_a_positive_number_of_seconds(api: Api, wrong: Any) -> None:
    response = api.client.post("/v1/jobs", json=BODY | {"deadline_seconds": wrong})
    assert response.status_code == 422
    assert response.json()["param"] == "deadline_seconds"


def test_a_quota_that_is_used_up_is_answered_with_429_and_when_to_come_again(
    api: Api, redis_client: Redis
) -> None:
    _, token = KeyStore(redis_client).create("small", Quotas(max_queued=1))
    headers = {"Authorization": f"Bearer {token}"}
    with httpx2.Client(base_url=api.url, headers=headers, trust_env=False) as client:
        assert client.post("/v1/jobs", json=BODY).status_code == 202
        refused = client.post("/v1/jobs", json=BODY)
    assert refused.status_code == 429
    assert refused.json()["code"] == "quota_exceeded"
    assert "max_queued" in refused.json()["detail"]
    assert int(refused.headers["Retry-After"]) >= 1
