"""/metrics: queue gauges from Redis, request times by route template, multiprocess mode."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from http_harness import OTHER_SPEC, SPEC, Api, FakeWorker, serving, worker_info
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families

from config.settings import Settings
from jobs.worker_registry import announce


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(api: Api, name: str, **labels: str) -> float | None:
    found = samples(api.client.get("/metrics").text)
    return found.get((name, frozenset(labels.items())))


def test_queue_gauges_tell_the_state_in_redis(
    api: Api, worker: FakeWorker, redis_client: Any
) -> None:
    api.submit()
    worker.claim()
    api.submit(priority="batch")
    api.submit(model=OTHER_SPEC.id)
    announce(redis_client, worker_info())
    assert value(api, "denoised_jobs_queued", model=SPEC.id, priority="batch") == 1
    assert value(api, "denoised_jobs_queued", model=OTHER_SPEC.id, priority="standard") == 1
    assert value(api, "denoised_jobs_running", model=SPEC.id) == 1
    assert value(api, "denoised_jobs_running", model=OTHER_SPEC.id) == 0
    oldest = value(api, "denoised_queue_oldest_seconds", model=OTHER_SPEC.id)
    assert oldest is not None
    assert oldest > 0
    assert value(api, "denoised_model_resident", model=SPEC.id) == 1
    assert value(api, "denoised_model_resident", model=OTHER_SPEC.id) == 0


def test_requests_are_timed_by_route_template_and_never_by_path(api: Api) -> None:
    job_id = api.submit()["id"]
    labels = {"route": "/v1/jobs/{job_id}", "method": "GET", "status": "200"}
    before = value(api, "denoised_http_request_seconds_count", **labels) or 0
    api.job(job_id)
    assert value(api, "denoised_http_request_seconds_count", **labels) == before + 1
    api.client.get("/no/such/path")
    api.client.request("BREW", "/v1/jobs")
    text = api.client.get("/metrics").text
    assert job_id not in text
    assert "such" not in text
    assert "BREW" not in text


def test_openmetrics_is_spoken_when_asked_for(api: Api) -> None:
    api.submit()
    response = api.client.get("/metrics", headers={"Accept": "application/openmetrics-text"})
    assert response.headers["Content-Type"].startswith("application/openmetrics-text")
    names = {family.name for family in parse_openmetrics(response.text)}
    assert {"denoised_jobs_queued", "denoised_http_request_seconds"} <= names


def test_without_redis_the_process_still_tells_its_own_metrics(settings: Settings) -> None:
    nowhere = settings.model_copy(update={"redis_url": "redis://127.0.0.1:1/0"})
    with serving(nowhere) as api:
        text = api.client.get("/metrics").text
    assert "denoised_http_request_seconds" in text
    assert "denoised_jobs_running" not in text


def test_in_multiprocess_mode_the_page_adds_up_all_processes(tmp_path: Path) -> None:
    count = (
        "from server.metrics import HTTP_REQUEST_SECONDS as h, exposition\n"
        "h.labels('/r', 'GET', '200').observe(0.1)\n"
        "print(exposition([], '')[0].decode())\n"
    )
    env = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    pages = [
        subprocess.run(
            [sys.executable, "-c", count], env=env, capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    ]
    name = (
        "denoised_http_request_seconds_count",
        frozenset({("route", "/r"), ("method", "GET"), ("status", "200")}),
    )
    assert [samples(page)[name] for page in pages] == [1, 2]
